"""The host's half: compiles a pretrained backbone into a training bundle."""
