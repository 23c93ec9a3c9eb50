//! The file for clients that trust only what one file holds (control-plane 5.8): Python's `SSL_CERT_FILE`
//! replaces the system's list, so the system's certificates are in it beside ours.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::CA_FILE;
use crate::data_dir::DataDir;

/// The bundle, in the data folder.
pub const BUNDLE_FILE: &str = "tls/ca-bundle.pem";

/// Where systems keep the certificates that they trust: Debian, Fedora, SUSE, Alpine.
const SYSTEM_FILES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Writes the bundle anew. Begins with what `trusted` (the caller's own `SSL_CERT_FILE`) names, else with the
/// system's list, which is returned; `None` if no such list was found.
///
/// # Errors
/// If a file cannot be read or written.
pub fn write_bundle(data: &DataDir, trusted: Option<&OsStr>) -> anyhow::Result<Option<PathBuf>> {
    let bundle = data.path().join(BUNDLE_FILE);
    let own = data.read(CA_FILE)?.context("there is no certificate to trust yet")?;
    // A shell that was set up before names the bundle itself.
    let trusted = trusted.map(PathBuf::from).filter(|path| *path != bundle);
    let base =
        trusted.or_else(|| SYSTEM_FILES.iter().map(PathBuf::from).find(|path| Path::exists(path)));
    let mut text = String::new();
    if let Some(base) = &base {
        text = std::fs::read_to_string(base)
            .with_context(|| format!("cannot read the certificates in {}", base.display()))?;
        text.push('\n');
    }
    text.push_str(&own);
    data.write(BUNDLE_FILE, &text)?;
    Ok(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_trusted_stays_trusted() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let data = DataDir::open(folder.path())?;
        assert!(write_bundle(&data, None).is_err());
        data.write(CA_FILE, "OURS")?;
        let company = folder.path().join("company.pem");
        std::fs::write(&company, "COMPANY")?;
        let base = write_bundle(&data, Some(company.as_os_str()))?;
        assert_eq!(base, Some(company));
        assert_eq!(data.read(BUNDLE_FILE)?.as_deref(), Some("COMPANY\nOURS"));
        // The bundle is no base for itself.
        let own = data.path().join(BUNDLE_FILE);
        assert_ne!(write_bundle(&data, Some(own.as_os_str()))?, Some(own));
        Ok(())
    }
}
