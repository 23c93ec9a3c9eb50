//! Kernels that are installed: Jupyter's kernel specifications, found where Jupyter looks for them.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Where Jupyter looks, for root and a Python of Debian or of `/usr/local`.
const FOLDERS: [&str; 3] = [
    "/root/.local/share/jupyter/kernels",
    "/usr/local/share/jupyter/kernels",
    "/usr/share/jupyter/kernels",
];

/// How a kernel is started and interrupted: its `kernel.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct KernelSpec {
    /// Program and arguments; `{connection_file}` stands for the file's path.
    pub argv: Vec<String>,
    /// Environment beside the interpreter's own.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// How its work is interrupted.
    #[serde(default)]
    pub interrupt_mode: InterruptMode,
    /// Our own additions.
    #[serde(default)]
    pub metadata: SpecMetadata,
    /// The folder of the file, for `{resource_dir}`.
    #[serde(skip)]
    pub folder: PathBuf,
}

/// How a kernel's work is interrupted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InterruptMode {
    /// By SIGINT to its process group.
    #[default]
    Signal,
    /// By a message on its control channel.
    Message,
}

/// What our own specifications say in addition.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct SpecMetadata {
    /// How the interpreter and the kernel reach each other.
    #[serde(default)]
    pub sandyard_transport: KernelTransport,
    /// Program and arguments of a server that makes such kernels by forking, if there is one; its socket's path follows.
    /// The specification's own program is then that of the server.
    #[serde(default)]
    pub sandyard_fork_server: Vec<String>,
}

/// How the interpreter and a kernel reach each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelTransport {
    /// Ports of the loopback address, which every kernel knows.
    #[default]
    Tcp,
    /// Unix sockets in a folder that only root can enter: no port of the sandbox is taken.
    Ipc,
}

/// Why a kernel cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Nothing of this name is installed.
    #[error("{}", no_kernel(.name, .installed))]
    Unknown {
        /// The name asked for.
        name: String,
        /// The names there are.
        installed: Vec<String>,
    },
    /// The file cannot be read.
    #[error("failed to read the kernel specification {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is none.
    #[error("{path} is no kernel specification")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

fn no_kernel(name: &str, installed: &[String]) -> String {
    let installed = installed.join(", ");
    let mut text = format!("there is no kernel for the language '{name}' in this template");
    if matches!(name, "r" | "java") {
        text.push_str("; the template 'code-interpreter-full' has it");
    }
    format!("{text} (installed: {installed})")
}

/// The folders of specifications.
#[derive(Clone, Debug)]
pub struct KernelSpecs {
    folders: Vec<PathBuf>,
}

impl KernelSpecs {
    /// Where Jupyter looks, and before that in `first`.
    pub fn new(first: Option<PathBuf>) -> Self {
        Self { folders: first.into_iter().chain(FOLDERS.map(PathBuf::from)).collect() }
    }

    /// The specification of a kernel, by the language or by the kernel's own name (code-interpreter 6).
    ///
    /// # Errors
    /// [`SpecError`]
    pub fn find(&self, language: &str) -> Result<KernelSpec, SpecError> {
        let name = match language {
            "python" => "python3",
            "r" => "ir",
            other => other,
        };
        // A name is one part of a path, and what Jupyter allows: letters, digits, `-`, `_`, `.`.
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let is_name = !name.is_empty() && !name.starts_with('.') && name.bytes().all(plain);
        if is_name {
            for folder in &self.folders {
                let folder = folder.join(name);
                if let Some(spec) = read(&folder)? {
                    return Ok(spec);
                }
            }
        }
        Err(SpecError::Unknown { name: language.to_owned(), installed: self.installed() })
    }

    fn installed(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .folders
            .iter()
            .filter_map(|folder| fs::read_dir(folder).ok())
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .map(|name| match name.as_str() {
                "python3" => "python".to_owned(),
                "ir" => "r".to_owned(),
                _ => name,
            })
            .collect();
        names.sort();
        names.dedup();
        names
    }
}

fn read(folder: &Path) -> Result<Option<KernelSpec>, SpecError> {
    let path = folder.join("kernel.json");
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(source) => return Err(SpecError::Read { path, source }),
    };
    let mut spec: KernelSpec =
        serde_json::from_slice(&text).map_err(|source| SpecError::Invalid { path, source })?;
    spec.folder = folder.to_owned();
    Ok(Some(spec))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_found_by_language_and_nothing_outside_the_folders_is_read() -> anyhow::Result<()>
    {
        let folder = tempfile::tempdir()?;
        for (name, text) in [
            (
                "python3",
                r#"{"argv":["p","{connection_file}"],"display_name":"x","language":"python"}"#,
            ),
            (
                "x",
                r#"{"argv":["x"],"interrupt_mode":"message","metadata":{"sandyard_transport":"ipc"}}"#,
            ),
            ("bad", "{"),
        ] {
            fs::create_dir(folder.path().join(name))?;
            fs::write(folder.path().join(name).join("kernel.json"), text)?;
        }
        let specs = KernelSpecs { folders: vec![folder.path().to_owned()] };
        let python = specs.find("python")?;
        assert_eq!(python.interrupt_mode, InterruptMode::Signal);
        assert_eq!(python.metadata.sandyard_transport, KernelTransport::Tcp);
        let other = specs.find("x")?;
        assert_eq!(other.interrupt_mode, InterruptMode::Message);
        assert_eq!(other.metadata.sandyard_transport, KernelTransport::Ipc);
        assert!(matches!(specs.find("bad"), Err(SpecError::Invalid { .. })));
        for name in ["", ".", "..", "../python3", "a/b", "cobol"] {
            assert!(matches!(specs.find(name), Err(SpecError::Unknown { .. })), "{name}");
        }
        let error = specs.find("java").expect_err("not there").to_string();
        assert!(error.contains("'code-interpreter-full'") && error.contains("python"), "{error}");
        Ok(())
    }
}
