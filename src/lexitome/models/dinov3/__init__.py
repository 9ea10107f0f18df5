"""DINOv3 and MedDINOv3: networks of transformers, with what those lack. Needs torch and transformers."""
