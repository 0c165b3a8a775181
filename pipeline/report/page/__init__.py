"""The comparison as one HTML file that asks nobody for anything: `report/index.html`.

build.py: the file. content.py: what it shows, from the comparison and the records. images.py: the pictures in it.
template.html, style.css, scripts/: what the browser gets, as it is. vendor/: uPlot 1.6.32, with its licence.
"""
