//! The command line of `init`, which it hands on to the daemon.

use anyhow::{Context as _, bail};
use ed25519_dalek::VerifyingKey;
use sandyard_types::InstanceId;

/// What the runtime tells `init` on its command line. Nothing of it is secret.
#[derive(Debug)]
pub(super) struct InitArgs {
    /// Names this container: what calls must be signed for.
    pub instance: InstanceId,
    /// The installation's public key.
    pub control_key: VerifyingKey,
    /// Whether mounts may come, so that the user's side needs the whole sandbox boundary.
    pub workspace: bool,
    /// Whether the daemon starts a code interpreter.
    pub interpreter: bool,
}

impl InitArgs {
    pub(super) fn parse(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let (mut instance, mut control_key) = (None, None);
        let (mut workspace, mut interpreter) = (false, false);
        while let Some(name) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{name} needs a value"));
            match name.as_str() {
                "--instance" => instance = Some(value()?.parse::<InstanceId>()?),
                "--control-key" => control_key = Some(parse_key(&value()?)?),
                "--workspace" => workspace = true,
                "--interpreter" => interpreter = true,
                _ => bail!("unknown argument {name}"),
            }
        }
        Ok(Self {
            instance: instance.context("--instance is missing")?,
            control_key: control_key.context("--control-key is missing")?,
            workspace,
            interpreter,
        })
    }

    /// The command line of the daemon, from the path of the program on.
    pub(super) fn daemon_command(&self) -> Vec<String> {
        let mut command = vec![
            "/.sandyard/executor".to_owned(),
            "daemon".to_owned(),
            "--instance".to_owned(),
            self.instance.to_string(),
            "--control-key".to_owned(),
            hex::encode(self.control_key.as_bytes()),
        ];
        if self.interpreter {
            command.push("--interpreter".to_owned());
        }
        command
    }
}

fn parse_key(text: &str) -> anyhow::Result<VerifyingKey> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).context("--control-key is not 64 hex digits")?;
    VerifyingKey::from_bytes(&bytes).context("--control-key is no Ed25519 public key")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> anyhow::Result<InitArgs> {
        InitArgs::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn the_daemon_gets_what_init_got() {
        let key = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        let instance = "00112233445566778899aabbccddeeff";
        let line = format!("--instance {instance} --control-key {key} --workspace");
        let args = parse(&line).expect("valid");
        assert!(args.workspace);
        let expected =
            ["/.sandyard/executor", "daemon", "--instance", instance, "--control-key", key];
        assert_eq!(args.daemon_command(), expected);
        let with_interpreter = parse(&format!("{line} --interpreter")).expect("valid");
        assert_eq!(with_interpreter.daemon_command().last().unwrap(), "--interpreter");
    }

    #[test]
    fn nothing_is_guessed() {
        for bad in ["", "--workspace", "--instance x", "--instance", "--mounts"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
