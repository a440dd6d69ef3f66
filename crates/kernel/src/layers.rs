//! Layers: compositions that bring their own parameters, named `name.weight`, `name.bias` and so on.

use crate::error::GraphError;
use crate::graph::{Graph, NodeId};
use crate::init::Init;
use crate::op::{Conv, Norm};

type Built = Result<NodeId, GraphError>;

/// Every method adds nodes and gives [`GraphError`] when the operands do not fit or a name is taken.
#[allow(clippy::missing_errors_doc)] // Said once, above.
impl Graph {
    /// A fully connected layer over the last dimension, with bias; PyTorch's default initialisation.
    pub fn linear_layer(&mut self, x: NodeId, name: &str, width_out: usize) -> Built {
        let fan_in = self.last_dimension("linear_layer", x)?;
        self.linear_layer_with(x, name, width_out, Init::FanIn { fan_in }, Init::FanIn { fan_in })
    }

    /// A fully connected layer with chosen initialisation of `weight [width_out, width_in]` and `bias [width_out]`.
    pub fn linear_layer_with(
        &mut self,
        x: NodeId,
        name: &str,
        width_out: usize,
        weight: Init,
        bias: Init,
    ) -> Built {
        let width_in = self.last_dimension("linear_layer", x)?;
        let weight = self.parameter(&format!("{name}.weight"), &[width_out, width_in], weight)?;
        let bias = self.parameter(&format!("{name}.bias"), &[width_out], bias)?;
        self.linear(x, weight, Some(bias))
    }

    /// A convolution over `x [n, c, h, w]` with a square kernel and bias; PyTorch's default initialisation.
    pub fn conv2d_layer(
        &mut self,
        x: NodeId,
        name: &str,
        channels_out: usize,
        kernel: usize,
        conv: Conv,
    ) -> Built {
        let &[_, channels, _, _] = self.shape(x) else {
            return Err(self.unfit("conv2d_layer", x, "x [n, c, h, w]"));
        };
        if conv.groups == 0 || !channels.is_multiple_of(conv.groups) {
            return Err(self.unfit(
                "conv2d_layer",
                x,
                &format!("channels divisible by {} groups", conv.groups),
            ));
        }
        let per_group = channels / conv.groups;
        let init = Init::FanIn { fan_in: per_group * kernel * kernel };
        let weight = self.parameter(
            &format!("{name}.weight"),
            &[channels_out, per_group, kernel, kernel],
            init,
        )?;
        let bias = self.parameter(&format!("{name}.bias"), &[channels_out], init)?;
        self.conv2d(x, weight, Some(bias), conv)
    }

    /// A convolution over `x [n, c, l]` with bias; `dilation` and `padding` along the one side.
    pub fn conv1d_layer(
        &mut self,
        x: NodeId,
        name: &str,
        channels_out: usize,
        kernel: usize,
        padding: usize,
        dilation: usize,
    ) -> Built {
        let &[_, channels, _] = self.shape(x) else {
            return Err(self.unfit("conv1d_layer", x, "x [n, c, l]"));
        };
        let init = Init::FanIn { fan_in: channels * kernel };
        let weight =
            self.parameter(&format!("{name}.weight"), &[channels_out, channels, 1, kernel], init)?;
        let bias = self.parameter(&format!("{name}.bias"), &[channels_out], init)?;
        let conv = Conv { padding: [0, padding], dilation: [1, dilation], ..Conv::default() };
        self.over_one_side(x, |graph, x| graph.conv2d(x, weight, Some(bias), conv))
    }

    /// Layer norm over the last dimension, with `weight` starting at 1 and `bias` at 0.
    pub fn layer_norm(&mut self, x: NodeId, name: &str, epsilon: f32) -> Built {
        let width = self.last_dimension("layer_norm", x)?;
        let last = self.shape(x).len() - 1;
        let normal = self.normalise(x, Norm::Standard, &[last], epsilon)?;
        let weight = self.parameter(&format!("{name}.weight"), &[width], Init::ONES)?;
        let bias = self.parameter(&format!("{name}.bias"), &[width], Init::ZEROS)?;
        let scaled = self.mul(normal, weight)?;
        self.add(scaled, bias)
    }

    /// Root-mean-square norm over the last dimension, with `weight` starting at 1.
    pub fn rms_norm(&mut self, x: NodeId, name: &str, epsilon: f32) -> Built {
        let width = self.last_dimension("rms_norm", x)?;
        let last = self.shape(x).len() - 1;
        let normal = self.normalise(x, Norm::RootMeanSquare, &[last], epsilon)?;
        let weight = self.parameter(&format!("{name}.weight"), &[width], Init::ONES)?;
        self.mul(normal, weight)
    }

    /// Group norm of `x [n, c, ..]`: statistics over each sample's groups of channels; one weight and bias per channel.
    pub fn group_norm(&mut self, x: NodeId, name: &str, groups: usize, epsilon: f32) -> Built {
        let shape = self.shape(x).to_vec();
        if shape.len() < 2 || groups == 0 || !shape[1].is_multiple_of(groups) {
            return Err(self.unfit(
                "group_norm",
                x,
                &format!("x [n, c, ..] with c divisible by {groups} groups"),
            ));
        }
        let per_group = shape[1..].iter().product::<usize>() / groups;
        let grouped = self.reshape(x, &[groups, per_group])?;
        let normal = self.normalise(grouped, Norm::Standard, &[2], epsilon)?;
        let normal = self.reshape(normal, &shape[1..])?;
        self.channel_affine(normal, name, shape[1])
    }

    /// Batch norm of `x [n, c, ..]`: the batch's statistics while training, running ones afterwards.
    ///
    /// The running statistics are the untrainable parameters `name.running_mean` and `name.running_variance`. Each
    /// training step updates them as `momentum * old + (1 - momentum) * batch`, so that a momentum near 1 is slow
    /// (PyTorch's momentum is one minus this one). The variance is the biased one in both places.
    pub fn batch_norm(&mut self, x: NodeId, name: &str, momentum: f32, epsilon: f32) -> Built {
        let shape = self.shape(x).to_vec();
        if shape.len() < 2 {
            return Err(self.unfit("batch_norm", x, "x [n, c, ..]"));
        }
        let axes: Vec<usize> = (0..shape.len()).filter(|&axis| axis != 1).collect();
        let training = self.normalise(x, Norm::Standard, &axes, epsilon)?;

        let detached = self.stop_gradient(x)?;
        let batch_mean = self.mean_keep(detached, &axes)?;
        let centred = self.sub(detached, batch_mean)?;
        let squares = self.square(centred)?;
        let batch_variance = self.mean(squares, &axes)?;
        let batch_mean = self.reshape(batch_mean, &[])?;
        let mean =
            self.running(&format!("{name}.running_mean"), Init::ZEROS, batch_mean, momentum)?;
        let variance = self.running(
            &format!("{name}.running_variance"),
            Init::ONES,
            batch_variance,
            momentum,
        )?;

        let mean = self.per_channel(mean, shape.len())?;
        let variance = self.per_channel(variance, shape.len())?;
        let centred = self.sub(x, mean)?;
        let variance = self.offset(variance, epsilon)?;
        let deviation = self.sqrt(variance)?;
        let inference = self.div(centred, deviation)?;
        let normal = self.phase(training, inference)?;
        self.channel_affine(normal, name, shape[1])
    }

    /// A state that follows `batch` slowly; returns its value before the step.
    fn running(&mut self, name: &str, init: Init, batch: NodeId, momentum: f32) -> Built {
        let shape = self.shape(batch).to_vec();
        let state = self.state(name, &shape, init)?;
        let old = self.scale(state, momentum)?;
        let new = self.scale(batch, 1.0 - momentum)?;
        let updated = self.add(old, new)?;
        self.update(name, updated)?;
        Ok(state)
    }

    fn channel_affine(&mut self, x: NodeId, name: &str, channels: usize) -> Built {
        let rank = self.shape(x).len();
        let weight = self.parameter(&format!("{name}.weight"), &[channels], Init::ONES)?;
        let bias = self.parameter(&format!("{name}.bias"), &[channels], Init::ZEROS)?;
        let weight = self.per_channel(weight, rank)?;
        let bias = self.per_channel(bias, rank)?;
        let scaled = self.mul(x, weight)?;
        self.add(scaled, bias)
    }

    /// Scaled dot-product attention of `query [n, t, d]` over `key` and `value [n, s, d]`, split into `heads`
    /// (Vaswani et al. 2017): `softmax(q k^T / sqrt(d / heads)) v`, heads joined again.
    pub fn attention(&mut self, query: NodeId, key: NodeId, value: NodeId, heads: usize) -> Built {
        let &[_, _, width] = self.shape(query) else {
            return Err(self.unfit("attention", query, "query [n, t, d]"));
        };
        if heads == 0 || !width.is_multiple_of(heads) {
            return Err(self.unfit(
                "attention",
                query,
                &format!("a width divisible by {heads} heads"),
            ));
        }
        let query_heads = self.split_heads(query, heads)?;
        let key_heads = self.split_heads(key, heads)?;
        let value_heads = self.split_heads(value, heads)?;
        let scores = self.matmul_transposed(query_heads, key_heads)?;
        let scores = self.scale(scores, 1.0 / ((width / heads) as f32).sqrt())?;
        let weights = self.softmax(scores)?;
        let mixed = self.matmul(weights, value_heads)?;
        let joined = self.permute(mixed, &[0, 2, 1, 3])?;
        let (length, width) = (self.shape(query)[1], self.shape(value)[2]);
        self.reshape(joined, &[length, width])
    }

    /// `[n, t, d]` to `[n, heads, t, d / heads]`.
    fn split_heads(&mut self, x: NodeId, heads: usize) -> Built {
        let &[_, length, width] = self.shape(x) else {
            return Err(self.unfit("attention", x, "three dimensions [n, t, d]"));
        };
        if !width.is_multiple_of(heads) {
            return Err(self.unfit("attention", x, &format!("a width divisible by {heads} heads")));
        }
        let split = self.reshape(x, &[length, heads, width / heads])?;
        self.permute(split, &[0, 2, 1, 3])
    }

    /// Self-attention of `x [n, t, d]` with learnt projections `name.query`, `name.key`, `name.value`, `name.out`.
    pub fn self_attention_layer(&mut self, x: NodeId, name: &str, heads: usize) -> Built {
        let width = self.last_dimension("self_attention_layer", x)?;
        let query = self.linear_layer(x, &format!("{name}.query"), width)?;
        let key = self.linear_layer(x, &format!("{name}.key"), width)?;
        let value = self.linear_layer(x, &format!("{name}.value"), width)?;
        let mixed = self.attention(query, key, value, heads)?;
        self.linear_layer(mixed, &format!("{name}.out"), width)
    }

    fn last_dimension(&self, operator: &'static str, x: NodeId) -> Result<usize, GraphError> {
        let last = self.shape(x).last().copied();
        last.ok_or_else(|| self.unfit(operator, x, "at least one dimension"))
    }

    fn unfit(&self, operator: &'static str, x: NodeId, expected: &str) -> GraphError {
        GraphError::Shape {
            operator,
            shapes: vec![self.shape(x).to_vec()],
            expected: expected.to_owned(),
        }
    }
}
