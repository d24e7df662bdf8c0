"""Make or fetch data sets: garments, scenes, MedMNIST."""
