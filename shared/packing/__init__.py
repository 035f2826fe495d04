"""Making packed models: an ordinary Hugging Face folder with one hashed file per block, ready for the kernels."""
