"""An exported file as a service: images come by HTTP and are classified in batches."""
