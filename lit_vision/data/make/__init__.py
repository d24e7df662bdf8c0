"""Make data sets: garments, scenes of garments, folders of MedMNIST files, pictures with words from packages."""
