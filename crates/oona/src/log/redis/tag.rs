//! Hash tags: what makes a cluster keep several keys on one node. Pure.

/// The part of a key between the first `{` and the next `}`; `None` when there is nothing between.
pub(crate) fn hash_tag(key: &str) -> Option<&str> {
    let (_, rest) = key.split_once('{')?;
    let (tag, _) = rest.split_once('}')?;
    (!tag.is_empty()).then_some(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_what_stands_in_the_first_braces() {
        assert_eq!(hash_tag("{oona}.normal"), Some("oona"));
        assert_eq!(hash_tag("a{b}{c}"), Some("b"));
        for none in ["oona.normal", "oona{}.x{y}", "oona{x"] {
            assert_eq!(hash_tag(none), None, "{none}");
        }
    }

    #[test]
    fn equal_tags_mean_equal_slots() {
        let slot = |key: &str| redis::cluster_routing::Slot::for_key(key);
        assert_eq!(slot("{oona}.normal"), slot("oona:{oona}:claim"));
    }
}
