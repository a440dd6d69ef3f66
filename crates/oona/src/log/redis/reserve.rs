//! What must go on when the server has reached `maxmemory`: groups, claims of nonces, heartbeats and
//! dead letters. A full server that could not be drained would never have room again. They take little,
//! and what they let the handlers finish is then trimmed.
//!
//! A script may say that it runs all the same; a command may not. So a command that was refused for
//! want of memory is sent once more inside such a script.

use redis::{Arg, Cmd, FromRedisValue, Pipeline};

use super::RedisLog;
use crate::error::LogError;

/// First line of a script that runs on a full server, too. Redis 7.0 and Valkey know it.
macro_rules! even_when_full {
    ($script:expr) => {
        concat!("#!lua flags=allow-oom\n", $script)
    };
}
pub(super) use even_when_full;

/// Keys: the command's only key. Arguments: the whole command.
const WRAPPED: &str = even_when_full!("return redis.call(unpack(ARGV))");

impl RedisLog {
    /// Sends a command with one key, and once more in reserve when the server is full.
    pub(super) async fn ask_even_when_full<T: FromRedisValue>(
        &self,
        operation: &'static str,
        urgent: bool,
        command: &Cmd,
    ) -> Result<T, LogError> {
        match self.ask(operation, urgent, command).await {
            Err(LogError::Refused { source, .. }) if is_full(&source) => {}
            other => return other,
        }
        self.ask(operation, urgent, &wrapped(command)).await
    }

    /// Sends commands with one key each, and once more in reserve when the server is full.
    pub(super) async fn ask_many_even_when_full<T: FromRedisValue>(
        &self,
        operation: &'static str,
        urgent: bool,
        pipe: &Pipeline,
    ) -> Result<T, LogError> {
        match self.ask_many(operation, urgent, pipe).await {
            Err(LogError::Refused { source, .. }) if is_full(&source) => {}
            other => return other,
        }
        let mut again = redis::pipe();
        for command in pipe.cmd_iter() {
            again.add_command(wrapped(command));
        }
        self.ask_many(operation, urgent, &again).await
    }
}

fn is_full(error: &redis::RedisError) -> bool {
    let errors = error.clone().into_server_errors();
    errors.is_some_and(|errors| errors.iter().any(|(_, error)| error.code() == "OOM"))
}

fn wrapped(command: &Cmd) -> Cmd {
    let words = command.args_iter().filter_map(|word| match word {
        Arg::Simple(bytes) => Some(bytes),
        _ => None,
    });
    // The key follows the command, or its subcommand.
    let key = if words.clone().next() == Some(b"XGROUP") { 2 } else { 1 };
    let mut wrapped = redis::cmd("EVAL");
    wrapped.arg(WRAPPED).arg(1).arg(words.clone().nth(key).unwrap_or_default());
    for word in words {
        wrapped.arg(word);
    }
    wrapped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(command: &Cmd) -> Vec<String> {
        let word = |word| match word {
            Arg::Simple(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            other => panic!("{other:?}"),
        };
        command.args_iter().map(word).collect()
    }

    #[test]
    fn a_wrapped_command_names_its_key() {
        let set = wrapped(redis::cmd("SET").arg("key").arg("value").arg("NX"));
        assert_eq!(words(&set)[2..], ["1", "key", "SET", "key", "value", "NX"]);
        let create = wrapped(redis::cmd("XGROUP").arg("CREATE").arg("key").arg("group"));
        assert_eq!(words(&create)[2..], ["1", "key", "XGROUP", "CREATE", "key", "group"]);
    }
}
