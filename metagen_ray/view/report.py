"""A study's report, from its tables to files. Owns which files there are; knows no store and no stage."""

from metagen_ray.plots.bars import correlation_bars, rmse_bars
from metagen_ray.plots.cells import CellTable
from metagen_ray.plots.distributions import histograms, scatter
from metagen_ray.plots.heatmaps import heat_maps
from metagen_ray.plots.picture import Picture
from metagen_ray.view import files
from metagen_ray.view.names import META, UNTRAINED
from metagen_ray.view.page import page
from metagen_ray.view.tables import ReportTables


def write_report(tables: ReportTables) -> dict[str, bytes]:
    """Content of every file of the report, by its path below the report's folder.

    `index.html` holds all of it; `quadrants.csv` and `cells.csv` are stable for other programs; each picture lies in
    `figures/` as PNG with the numbers it shows as CSV.
    """
    pictures = draw(tables)
    analysis = tables.analysis
    written = {
        "index.html": page(tables, pictures),
        "quadrants.csv": files.quadrants_csv(analysis.quadrants),
        "cells.csv": files.cells_csv(analysis.cells),
        "contrasts.csv": files.contrasts_csv(analysis.contrasts),
        "claims.csv": files.claims_csv(analysis.claims),
        "blocks.csv": files.blocks_csv(analysis.blocks),
    }
    for picture in pictures:
        written[f"figures/{picture.name}.png"] = picture.png
        written[f"figures/{picture.name}.csv"] = files.to_csv(picture.columns, picture.rows)
    return written


def draw(tables: ReportTables) -> list[Picture]:
    """All pictures of a study, the central one first."""
    rows, cells = tables.analysis.quadrants, CellTable(tables.analysis.cells)
    grids = [heat_maps(cells, p, tables.families) for p in (META, UNTRAINED) if cells.has(p)]
    return [rmse_bars(rows), correlation_bars(rows), histograms(cells, rows), *grids, scatter(cells, rows)]
