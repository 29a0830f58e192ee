"""Models and runs on disk, in Hugging Face's formats, with what training needs to go on."""
