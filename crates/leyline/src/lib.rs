//! Wire types, ids, stages and their edges, signing and verifying.
