"""SAM 3 and Medical SAM3: networks of transformers, with what those lack. Needs torch and transformers."""
