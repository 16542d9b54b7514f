"""Reports on runs, searches and studies: charts by matplotlib, self-contained HTML pages. Reads runs, never trains."""
