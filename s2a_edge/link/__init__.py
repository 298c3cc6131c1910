"""Flash: bring bundles to boards and results back, over whatever wire there is."""
