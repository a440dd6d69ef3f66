//! The compile forge: jobs, checks, prewarming, catalogue updates.
