//! Which files are known to match their digest. A file is hashed once for each identity it has.

use std::collections::{HashMap, VecDeque};

use kernel::Digest;

use crate::files::Identity;

/// Digests proven for file identities; bounded, the oldest proof goes first.
#[derive(Debug)]
pub(crate) struct Verified {
    proofs: HashMap<Identity, Digest>,
    order: VecDeque<Identity>,
    len_max: usize,
}

impl Verified {
    pub(crate) fn new(len_max: usize) -> Self {
        Self { proofs: HashMap::new(), order: VecDeque::new(), len_max: len_max.max(1) }
    }

    pub(crate) fn holds(&self, identity: &Identity, digest: &Digest) -> bool {
        self.proofs.get(identity) == Some(digest)
    }

    pub(crate) fn insert(&mut self, identity: Identity, digest: Digest) {
        if self.proofs.insert(identity, digest).is_none() {
            self.order.push_back(identity);
        }
        while self.order.len() > self.len_max {
            if let Some(oldest) = self.order.pop_front() {
                self.proofs.remove(&oldest);
            }
        }
    }
}
