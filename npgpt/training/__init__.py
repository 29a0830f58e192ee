"""Training: configuration, optimisation, what is kept on disk and what a person sees."""
