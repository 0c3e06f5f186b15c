"""The mathematics: pure functions of arrays. Imports numpy and scipy only."""
