"""What frozen features are worth: probes of classification and segmentation, and pictures of what encoders see."""
