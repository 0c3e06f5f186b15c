"""The library of the scripts: training cells, grids, results and reports. It is not part of the installed package."""
