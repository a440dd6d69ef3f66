//! Observability: ingest, metrics endpoint, health and the page.
