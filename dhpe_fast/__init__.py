"""dhpe-fast: a dense 3D hand from one RGB image."""
