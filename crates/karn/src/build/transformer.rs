//! Attention with several heads over the positions, and the blocks built on it.

use kernel::{Init, NodeId};

use super::sketch::{Built, Sketch, Start, Window, odd, value, whole};
use crate::parameters::Parameters;

/// Fewest features of a head: with fewer a head can hardly tell one position from another.
const HEAD_WIDTH_MIN: usize = 4;
/// Heads of the attention in blocks that have no parameter for it.
pub(super) const BLOCK_HEADS: usize = 2;
/// Hidden units per channel of a transformer's feed-forward part (Vaswani et al. 2017).
const FEED_FORWARD: usize = 4;
/// Inducing points of BP019.
const POINTS: usize = 8;

/// What attends, to what, and how.
pub(super) struct Attention<'a> {
    pub(super) name: &'a str,
    pub(super) heads: usize,
    /// How the output projection starts.
    pub(super) out: Start,
}

impl Attention<'_> {
    /// Scaled dot-product attention (Vaswani et al. 2017) of `queries [n, t, c]` over `source [n, s, c]`, with learnt
    /// projections. A head has a share of the channels, rounded up, and at least four: the number of heads need not
    /// divide the channels.
    pub(super) fn draw(&self, sketch: &mut Sketch, queries: NodeId, source: NodeId) -> Built {
        let channels = sketch.last(queries);
        let inner = self.heads * channels.div_ceil(self.heads).max(HEAD_WIDTH_MIN);
        let name = self.name;
        let query = sketch.linear(queries, &format!("{name}.query"), inner, Start::LINEAR)?;
        let key = sketch.linear(source, &format!("{name}.key"), inner, Start::LINEAR)?;
        let values = sketch.linear(source, &format!("{name}.value"), inner, Start::LINEAR)?;
        let mixed = sketch.graph.attention(query, key, values, self.heads)?;
        sketch.linear(mixed, &format!("{name}.out"), channels, self.out)
    }
}

/// BP019. Cross attention between the activation and a second input that is learnt: induced set attention (Lee et al.
/// 2019, "Set Transformer"; Jaegle et al. 2021, "Perceiver"). Eight inducing points, each added to the mean token,
/// gather from the positions by attention of `heads` heads; then the positions attend to the points. The last
/// projection starts at zero and the input skips around it. Identity at the start.
pub(super) fn cross_attention(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    let heads = whole(value(parameters, "heads"));
    let tokens = sketch.as_tokens(x)?;
    let channels = sketch.last(tokens);
    let tokens = sketch.norm(tokens, "norm")?;
    let init = Init::Normal { mean: 0.0, deviation: 1.0 };
    let points = sketch.graph.parameter("points", &[POINTS, channels], init)?;
    let mean = sketch.graph.mean_keep(tokens, &[1])?;
    let asked = sketch.graph.add(mean, points)?;
    let gather = Attention { name: "gather", heads, out: Start::LINEAR };
    let gathered = gather.draw(sketch, asked, tokens)?;
    let second = sketch.graph.add(asked, gathered)?;
    let spread = Attention { name: "spread", heads, out: Start::Zero };
    let branch = spread.draw(sketch, tokens, second)?;
    let branch = sketch.of_tokens(branch)?;
    sketch.graph.add(x, branch)
}

/// BP022 and BP029. Multi-head self-attention over the positions (Vaswani et al. 2017) after layer norm (Xiong et al.
/// 2020), with `heads` heads. The output projection starts at zero and the input skips around it. Identity at the
/// start.
pub(super) fn multi_head_attention(
    sketch: &mut Sketch,
    x: NodeId,
    parameters: &Parameters,
) -> Built {
    let heads = whole(value(parameters, "heads"));
    let tokens = sketch.as_tokens(x)?;
    let normal = sketch.norm(tokens, "norm")?;
    let attention = Attention { name: "attention", heads, out: Start::Zero };
    let branch = attention.draw(sketch, normal, normal)?;
    let branch = sketch.of_tokens(branch)?;
    sketch.graph.add(x, branch)
}

/// BP023. `layers` encoder layers of the transformer (Vaswani et al. 2017), normalised before each part (Xiong et al.
/// 2020): self-attention of two heads, then `W2 GELU(W1 x)` with four times as many hidden units as channels. The
/// last projection of each part starts at zero (Zhang et al. 2019). Identity at the start.
pub(super) fn transformer_block(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    let layers = whole(value(parameters, "layers"));
    let mut tokens = sketch.as_tokens(x)?;
    for layer in 0..layers {
        let name = format!("layer{layer}");
        tokens = attend(sketch, tokens, &name)?;
        tokens = feed_forward(sketch, tokens, &name, 1.0)?;
    }
    sketch.of_tokens(tokens)
}

/// Tokens and what they attend to among themselves.
fn attend(sketch: &mut Sketch, tokens: NodeId, name: &str) -> Built {
    let normal = sketch.norm(tokens, &format!("{name}.attention.norm"))?;
    let name = format!("{name}.attention");
    let attention = Attention { name: &name, heads: BLOCK_HEADS, out: Start::Zero };
    let branch = attention.draw(sketch, normal, normal)?;
    sketch.graph.add(tokens, branch)
}

/// Tokens and `share` of what two layers make of each.
fn feed_forward(sketch: &mut Sketch, tokens: NodeId, name: &str, share: f32) -> Built {
    let channels = sketch.last(tokens);
    let normal = sketch.norm(tokens, &format!("{name}.feed.norm"))?;
    let hidden = FEED_FORWARD * channels;
    let hidden = sketch.linear(normal, &format!("{name}.feed.expand"), hidden, Start::Hidden)?;
    let hidden = sketch.graph.gelu(hidden)?;
    let name = format!("{name}.feed.project");
    let branch = sketch.linear(hidden, &name, channels, Start::Zero)?;
    let branch = if share == 1.0 { branch } else { sketch.graph.scale(branch, share)? };
    sketch.graph.add(tokens, branch)
}

/// BP024. One block of the Conformer (Gulati et al. 2020): half a feed-forward part, self-attention, a convolution
/// part, half a feed-forward part, each with the input around it. The convolution part is a gated linear unit, a
/// depthwise convolution of `kernel` positions per side (odd), layer norm, SiLU and a projection. Layer norm stands
/// for the paper's batch norm, so that samples do not see each other, and its last norm is left out: with it a block
/// could not start as the identity. The last projection of each part starts at zero. Identity at the start.
pub(super) fn conv_transformer(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    let kernel = odd(value(parameters, "kernel"));
    let tokens = sketch.as_tokens(x)?;
    let tokens = feed_forward(sketch, tokens, "first", 0.5)?;
    let tokens = attend(sketch, tokens, "middle")?;
    let tokens = convolve(sketch, tokens, kernel)?;
    let tokens = feed_forward(sketch, tokens, "last", 0.5)?;
    sketch.of_tokens(tokens)
}

fn convolve(sketch: &mut Sketch, tokens: NodeId, kernel: usize) -> Built {
    let channels = sketch.last(tokens);
    let normal = sketch.norm(tokens, "convolution.norm")?;
    let both = sketch.linear(normal, "convolution.expand", 2 * channels, Start::LINEAR)?;
    let values = sketch.graph.slice(both, 2, 0, channels)?;
    let gate = sketch.graph.slice(both, 2, channels, 2 * channels)?;
    let gate = sketch.graph.sigmoid(gate)?;
    let gated = sketch.graph.mul(values, gate)?;
    let map = sketch.tokens_as_map(gated)?;
    let window = Window { kernel, channels_out: channels, groups: channels };
    let map = sketch.conv(map, "convolution.depthwise", window, Start::Hidden)?;
    let mixed = sketch.map_as_tokens(map)?;
    let mixed = sketch.norm(mixed, "convolution.inner_norm")?;
    let mixed = sketch.graph.silu(mixed)?;
    let branch = sketch.linear(mixed, "convolution.project", channels, Start::Zero)?;
    sketch.graph.add(tokens, branch)
}
