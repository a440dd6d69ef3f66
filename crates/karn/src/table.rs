//! The 50 templates, as data. A number changed here changes which blueprints exist for everybody: the tests
//! beside the catalogue hold the published counts against this table.

use crate::blueprint::Clearance::{self, Approval, Open, Quarantine};
use crate::blueprint::Tier::{self, Experimental, HighRisk, Safe};

/// One line of the table: what a [`crate::Blueprint`] is made from.
#[derive(Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) id: &'static str,
    pub(crate) name: &'static str,
    pub(crate) tier: Tier,
    /// Name, smallest and largest value.
    pub(crate) parameters: &'static [(&'static str, f64, f64)],
    pub(crate) risk: f32,
    pub(crate) stage: u32,
    pub(crate) clearance: Clearance,
    pub(crate) description: &'static str,
}

/// A line of the table in the order of its columns, which is why there are so many.
#[expect(clippy::too_many_arguments, reason = "one argument per column of the table")]
const fn row(
    id: &'static str,
    name: &'static str,
    tier: Tier,
    parameters: &'static [(&'static str, f64, f64)],
    risk: f32,
    stage: u32,
    clearance: Clearance,
    description: &'static str,
) -> Row {
    Row { id, name, tier, parameters, risk, stage, clearance, description }
}

/// All templates in catalogue order, which is the order of their ids.
#[rustfmt::skip]
pub(crate) static ROWS: [Row; 50] = [
    row("BP001", "identity_passthrough", Safe, &[], 0.0, 0, Open, "input returned unchanged; fallback kernel"),
    row("BP002", "linear_projection", Safe, &[("scale", 0.5, 2.0)], 0.1, 0, Open, "linear map followed by SiLU in the prototype builder"),
    row("BP003", "layer_norm_basic", Safe, &[("epsilon", 1e-6, 0.001)], 0.1, 0, Open, "layer normalisation"),
    row("BP004", "dropout_light", Safe, &[("dropout", 0.0, 0.4)], 0.2, 0, Open, "light dropout"),
    row("BP005", "relu_activation", Safe, &[], 0.1, 0, Open, "ReLU"),
    row("BP006", "batch_norm_1d", Safe, &[("momentum", 0.5, 0.99)], 0.2, 0, Open, "batch normalisation for vectors"),
    row("BP007", "pooling_max", Safe, &[("kernel", 2.0, 5.0)], 0.2, 0, Open, "max pooling"),
    row("BP008", "skip_connection", Safe, &[], 0.2, 1, Open, "skip path"),
    row("BP009", "residual_block", Safe, &[("depth", 1.0, 4.0)], 0.3, 1, Open, "residual block"),
    row("BP010", "concat_fusion", Safe, &[("branches", 2.0, 4.0)], 0.3, 1, Open, "several branches concatenated"),
    row("BP011", "gelu_activation", Safe, &[], 0.2, 1, Open, "GELU"),
    row("BP012", "layer_scaling", Safe, &[("scale", 0.8, 1.2)], 0.3, 1, Open, "per-layer output scaling"),
    row("BP013", "grouped_conv", Safe, &[("groups", 2.0, 8.0)], 0.4, 1, Open, "grouped convolution"),
    row("BP014", "highway_gate", Safe, &[("gate_bias", -3.0, 3.0)], 0.4, 1, Open, "highway gate (carry/transform)"),
    row("BP015", "depthwise_separable", Safe, &[("kernel", 3.0, 7.0)], 0.4, 2, Open, "depthwise + pointwise convolution"),
    row("BP016", "squeeze_excitation", Safe, &[("reduction", 4.0, 16.0)], 0.4, 2, Open, "squeeze-and-excitation"),
    row("BP017", "channel_attention", Safe, &[("heads", 1.0, 4.0)], 0.4, 2, Open, "attention over channels"),
    row("BP018", "spatial_attention", Safe, &[("radius", 1.0, 3.0)], 0.4, 2, Open, "attention over positions"),
    row("BP019", "cross_attention", Safe, &[("heads", 2.0, 4.0)], 0.5, 2, Open, "attention between two inputs"),
    row("BP020", "attention_single_head", Safe, &[("sequence_length", 16.0, 256.0)], 0.5, 2, Open, "self-attention, one head"),
    row("BP021", "feedforward_gated", Safe, &[("hidden_multiple", 2.0, 6.0)], 0.5, 2, Open, "gated feed-forward"),
    row("BP022", "multi_head_attention_4", Safe, &[("heads", 4.0, 6.0)], 0.5, 3, Open, "self-attention, about 4 heads"),
    row("BP023", "transformer_block", Safe, &[("layers", 1.0, 6.0)], 0.5, 3, Open, "transformer encoder block"),
    row("BP024", "conv_transformer", Safe, &[("kernel", 3.0, 11.0)], 0.5, 3, Open, "convolution + attention hybrid"),
    row("BP025", "dynamic_conv", Safe, &[("experts", 2.0, 8.0)], 0.5, 3, Open, "input-conditioned convolution (expert kernels)"),
    row("BP026", "adaptive_pooling", Safe, &[("output_size", 4.0, 16.0)], 0.5, 3, Open, "pooling to a fixed output size"),
    row("BP027", "feature_pyramid", Safe, &[("levels", 3.0, 5.0)], 0.5, 3, Open, "multi-scale feature fusion"),
    row("BP028", "dense_connection", Safe, &[("growth_rate", 8.0, 48.0)], 0.5, 3, Open, "densely connected layers"),
    row("BP029", "multi_head_attention_8", Safe, &[("heads", 8.0, 10.0)], 0.5, 4, Open, "self-attention, about 8 heads"),
    row("BP030", "graph_attention", Safe, &[("hops", 1.0, 3.0)], 0.5, 4, Open, "attention over graph neighbours"),
    row("BP031", "temporal_conv", Safe, &[("dilation", 1.0, 5.0)], 0.5, 4, Open, "convolution over time"),
    row("BP032", "dilated_conv", Safe, &[("dilation", 1.0, 8.0)], 0.5, 4, Open, "dilated convolution stack"),
    row("BP033", "deformable_conv", Safe, &[("offset_groups", 1.0, 4.0)], 0.5, 4, Open, "convolution with learned offsets"),
    row("BP034", "non_local_block", Safe, &[("window", 4.0, 16.0)], 0.5, 4, Open, "non-local (global) attention"),
    row("BP035", "learned_positional", Safe, &[("frequency", 0.1, 1.0)], 0.5, 4, Open, "learned position encoding"),
    row("BP036", "mixture_of_experts_4", Experimental, &[("capacity", 1.0, 2.0), ("experts", 4.0, 8.0)], 0.7, 5, Approval, "sparse mixture of experts"),
    row("BP037", "hierarchical_attention", Experimental, &[("levels", 2.0, 4.0)], 0.7, 5, Approval, "attention at several levels"),
    row("BP038", "memory_augmented", Experimental, &[("memory_slots", 32.0, 128.0)], 0.8, 5, Approval, "external memory slots"),
    row("BP039", "neural_ode_block", Experimental, &[("steps", 1.0, 10.0)], 0.8, 5, Approval, "ODE-integrated block"),
    row("BP040", "differentiable_nas", Experimental, &[("temperature", 0.5, 2.0)], 0.8, 5, Approval, "differentiable architecture choice"),
    row("BP041", "meta_learning_layer", Experimental, &[("adapt_steps", 1.0, 5.0)], 0.8, 5, Approval, "inner-loop adaptation layer"),
    row("BP042", "recursive_processing", Experimental, &[("depth", 2.0, 6.0)], 0.8, 5, Approval, "recursive application of a block"),
    row("BP043", "exploding_gradient", HighRisk, &[("scale", 5.0, 20.0)], 0.9, 6, Quarantine, "makes gradients explode"),
    row("BP044", "vanishing_gradient", HighRisk, &[("decay", 0.0, 0.1)], 0.9, 6, Quarantine, "makes gradients vanish"),
    row("BP045", "nan_injection", HighRisk, &[("frequency", 0.01, 0.1)], 1.0, 6, Quarantine, "injects NaN"),
    row("BP046", "infinite_loop", HighRisk, &[("iterations", 1000.0, 10000.0)], 1.0, 6, Quarantine, "very long loop"),
    row("BP047", "memory_leak", HighRisk, &[("growth_rate", 1.0, 5.0)], 1.0, 6, Quarantine, "leaks memory"),
    row("BP048", "deadlock_pattern", HighRisk, &[("threads", 2.0, 16.0)], 1.0, 6, Quarantine, "provokes deadlock"),
    row("BP049", "race_condition", HighRisk, &[("window_ns", 10.0, 1000.0)], 0.9, 6, Quarantine, "provokes a data race"),
    row("BP050", "adversarial_noise", HighRisk, &[("epsilon", 0.1, 1.0)], 0.9, 6, Quarantine, "adversarial noise"),
];
