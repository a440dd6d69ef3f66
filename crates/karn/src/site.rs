//! Where in a host a kernel is to sit: the shape of the activation that flows through the slot.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The activation at a slot, without its batch. A kernel takes it and gives it back in the same shape.
///
/// Every template works on every kind of site, through one of two views:
///
/// - **features**: the axis that linear maps mix. A vector's features, an image's channels (so a linear map is a
///   1x1 convolution), a sequence's width.
/// - **map**: channels over positions `[batch, channels, height, width]`, for convolutions, pooling and attention.
///   An image is one. A sequence is `[width, 1, length]`. A vector of `f` features is read as `c` channels of `f / c`
///   consecutive features each, where `c` is the smallest divisor of `f` that is not below its square root:
///   32 features are 8 channels of 4 positions. A prime number of features leaves one position per channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Site {
    /// `[batch, features]`
    Vector {
        /// Number of features.
        features: usize,
    },
    /// `[batch, channels, height, width]`
    Image {
        /// Number of channels.
        channels: usize,
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
    },
    /// `[batch, length, width]`
    Sequence {
        /// Number of positions.
        length: usize,
        /// Features at each position.
        width: usize,
    },
}

/// Sizes of the map view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MapSize {
    pub(crate) channels: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
}

impl Site {
    /// Shape of the activation with `batch` samples.
    pub fn shape(&self, batch: usize) -> Vec<usize> {
        match *self {
            Self::Vector { features } => vec![batch, features],
            Self::Image { channels, height, width } => vec![batch, channels, height, width],
            Self::Sequence { length, width } => vec![batch, length, width],
        }
    }

    /// Size of the features view.
    pub(crate) fn features(&self) -> usize {
        match *self {
            Self::Vector { features } => features,
            Self::Image { channels, .. } => channels,
            Self::Sequence { width, .. } => width,
        }
    }

    /// The axis of the features view, batch included.
    pub(crate) fn feature_axis(&self) -> usize {
        match self {
            Self::Vector { .. } | Self::Image { .. } => 1,
            Self::Sequence { .. } => 2,
        }
    }

    /// Sizes of the map view.
    pub(crate) fn map(&self) -> MapSize {
        match *self {
            Self::Vector { features } => {
                let channels = square_divisor(features);
                MapSize { channels, height: 1, width: features / channels }
            }
            Self::Image { channels, height, width } => MapSize { channels, height, width },
            Self::Sequence { length, width } => {
                MapSize { channels: width, height: 1, width: length }
            }
        }
    }
}

/// Smallest divisor of `count` that is not below its square root; 1 for 0, which no graph accepts anyway.
fn square_divisor(count: usize) -> usize {
    let mut small = 1;
    let mut best = count.max(1);
    while small <= count / small {
        if count.is_multiple_of(small) {
            best = count / small;
        }
        small += 1;
    }
    best
}

/// The spelling that keys compile jobs: `vector[32]`, `image[8x16x16]`, `sequence[12x64]`.
impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vector { features } => write!(f, "vector[{features}]"),
            Self::Image { channels, height, width } => {
                write!(f, "image[{channels}x{height}x{width}]")
            }
            Self::Sequence { length, width } => write!(f, "sequence[{length}x{width}]"),
        }
    }
}

/// A text that spells no site.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no site; write vector[features], image[channels x height x width] as image[8x16x16], or \
     sequence[length x width] as sequence[12x64], with sizes from 1 to {SIZE_MAX}"
)]
pub struct SiteError {
    /// The text, cut where it is long.
    pub text: String,
}

/// Largest size of one axis that a text may spell; what is too large for an artifact is refused later, by its bytes.
const SIZE_MAX: usize = 1 << 20;

impl FromStr for Site {
    type Err = SiteError;

    /// Reads the spelling that [`Display`](fmt::Display) writes.
    fn from_str(text: &str) -> Result<Self, SiteError> {
        let fault = || SiteError { text: text.chars().take(64).collect() };
        let (kind, rest) = text.split_once('[').ok_or_else(fault)?;
        let sizes = rest.strip_suffix(']').ok_or_else(fault)?;
        let is_plain = |size: &&str| size.bytes().all(|byte| byte.is_ascii_digit());
        let size = |size: &str| Some(size).filter(is_plain)?.parse::<usize>().ok();
        let sizes: Option<Vec<usize>> = sizes.split('x').map(size).collect();
        let sizes = sizes.filter(|sizes| sizes.iter().all(|size| (1..=SIZE_MAX).contains(size)));
        match (kind, sizes.as_deref()) {
            ("vector", Some(&[features])) => Ok(Self::Vector { features }),
            ("image", Some(&[channels, height, width])) => {
                Ok(Self::Image { channels, height, width })
            }
            ("sequence", Some(&[length, width])) => Ok(Self::Sequence { length, width }),
            _ => Err(fault()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_is_read_as_it_is_written() {
        for site in [
            Site::Vector { features: 32 },
            Site::Image { channels: 8, height: 16, width: 1 },
            Site::Sequence { length: 12, width: 64 },
        ] {
            assert_eq!(site.to_string().parse(), Ok(site));
        }
        for text in [
            "",
            "vector",
            "vector[]",
            "vector[0]",
            "vector[+3]",
            "vector[3",
            "vector[3]x",
            "tensor[3]",
            "vector[3x4]",
            "image[3x4]",
            "sequence[3]",
            "vector[99999999999999999999]",
            "vector[1048577]",
            "vector[ 3]",
        ] {
            let fault = text.parse::<Site>().unwrap_err();
            assert!(fault.to_string().contains("image[8x16x16]"), "{fault}");
        }
    }

    #[test]
    fn a_vector_is_read_as_channels_over_positions() {
        for (features, channels) in
            [(1, 1), (2, 2), (12, 4), (31, 31), (32, 8), (36, 6), (64, 8), (96, 12)]
        {
            let map = Site::Vector { features }.map();
            assert_eq!((map.channels, map.height), (channels, 1), "{features}");
            assert_eq!(map.channels * map.width, features);
        }
    }

    #[test]
    fn spellings_are_those_of_job_keys() {
        assert_eq!(Site::Vector { features: 32 }.to_string(), "vector[32]");
        let image = Site::Image { channels: 8, height: 16, width: 15 };
        assert_eq!(image.to_string(), "image[8x16x15]");
        assert_eq!(Site::Sequence { length: 12, width: 64 }.to_string(), "sequence[12x64]");
    }
}
