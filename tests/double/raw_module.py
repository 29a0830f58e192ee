class RawModule: pass
