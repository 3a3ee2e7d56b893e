"""Convolutional networks, plain and spiking: the families that a split ViT is compared with."""
