//! The tensor engine: graph IR, gradients, interpreter, plans, guard and the artifact file.
