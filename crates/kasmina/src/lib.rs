//! Seeds: stages, gates, blending, isolation; the prefetch coordinator.
