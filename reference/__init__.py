"""The checkpoint that we train ourselves on drawn street scenes, and the scenes."""
