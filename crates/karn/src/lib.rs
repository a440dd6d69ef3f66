//! The blueprint catalogue: which templates exist, their bounds, tiers and graphs.
