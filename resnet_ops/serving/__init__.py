"""An exported file as an HTTP service on Ray Serve, which classifies images in batches."""
