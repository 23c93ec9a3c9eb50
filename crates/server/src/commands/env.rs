//! `sandyard env`: what to export so that the SDKs talk to the running server.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::config::Config;
use crate::data_dir::{DataDir, RunningServer};
use crate::domain::Domain;
use crate::tls::{BUNDLE_FILE, CA_FILE, write_bundle};

/// These win over the domain in every client.
const WINNERS: [&str; 2] = ["E2B_API_URL", "E2B_SANDBOX_URL"];

/// Prints one `export NAME=value` a line, for plain HTTP (control-plane 5.4, setup A).
///
/// # Errors
/// If no server runs on the data folder, or its files cannot be read.
pub fn run(config: &Config) -> anyhow::Result<()> {
    let (data, running) = find(config)?;
    print(&[
        ("E2B_API_KEY", key(config, &data)?),
        ("E2B_API_URL", running.public.api.clone()),
        ("E2B_SANDBOX_URL", running.public.sandbox.clone()),
    ]);
    print_store(&data, &running)
}

/// The same for TLS (setup B). What is to be done besides goes to standard error.
///
/// # Errors
/// As [`run`], and if the certificates to trust cannot be put together.
pub fn run_tls(config: &Config, certificates: Option<&Path>) -> anyhow::Result<()> {
    let (data, running) = find(config)?;
    let domain: Domain = running.domain.parse()?;
    // With copies of the certificates the shell is another one, which cannot be looked at from here.
    let elsewhere = certificates.is_some();
    let winners = WINNERS.iter().filter(|name| elsewhere || std::env::var_os(name).is_some());
    for name in winners {
        println!("unset {name}");
    }
    print(&[("E2B_API_KEY", key(config, &data)?), ("E2B_DOMAIN", running.domain.clone())]);
    if running.own_certificate {
        eprintln!(
            "# The certificate is the one of tls.certificate_file: clients have to trust its issuer."
        );
    } else {
        let trusted = std::env::var_os("SSL_CERT_FILE");
        let base = write_bundle(&data, trusted.as_deref())?;
        let folder = certificates.map(absolute).transpose()?;
        let file = |name: &str| match (&folder, Path::new(name).file_name()) {
            (Some(folder), Some(name)) => folder.join(name),
            _ => data.path().join(name),
        };
        let (bundle, ca) = (file(BUNDLE_FILE), file(CA_FILE));
        print(&[("SSL_CERT_FILE", quoted(&bundle)?), ("NODE_EXTRA_CA_CERTS", quoted(&ca)?)]);
        match base {
            Some(base) => eprintln!(
                "# Python trusts what SSL_CERT_FILE holds and nothing else: it is {} and this server's \
                 certificate.",
                base.display()
            ),
            None => eprintln!(
                "# Python trusts what SSL_CERT_FILE holds and nothing else: it is this server's certificate \
                 alone, because no list of the system's was found, so that other sites fail."
            ),
        }
    }
    print_store(&data, &running)?;
    say_names(&domain);
    Ok(())
}

fn say_names(domain: &Domain) {
    let (name, port, api) = (domain.name(), domain.port(), domain.api_host());
    if domain.is_localhost() {
        eprintln!(
            "# {api} and every <port>-<sandboxID>.{name} must resolve to this machine. Python (e2b 2.35 and \
             later) does that by itself; for Node.js, the CLI and older releases the system has to: on Debian \
             and Ubuntu 'apt-get install libnss-myhostname'. 'sandyard doctor' looks whether it does."
        );
    } else {
        eprintln!(
            "# {api} and every <port>-<sandboxID>.{name} must resolve to where this server's proxy is reached \
             at port {port}: a record '*.{name}' in the name server. 'sandyard doctor' looks whether it does."
        );
    }
    eprintln!("# Behind a company proxy, Python also needs NO_PROXY=.{name}");
}

fn find(config: &Config) -> anyhow::Result<(DataDir, RunningServer)> {
    let data = DataDir::open(&config.data_dir)?;
    let running = data.running()?.with_context(|| {
        format!(
            "no server runs on the data folder {}: start one with 'sandyard up'",
            data.path().display()
        )
    })?;
    Ok((data, running))
}

fn key(config: &Config, data: &DataDir) -> anyhow::Result<String> {
    match &config.api_key {
        Some(key) => Ok(key.reveal().to_owned()),
        None => data.first_api_key(),
    }
}

fn print_store(data: &DataDir, running: &RunningServer) -> anyhow::Result<()> {
    let owner = data.secrets()?.owner_key();
    print(&[
        ("SANDYARD_S3_ENDPOINT", running.public.s3.clone()),
        ("SANDYARD_S3_BUCKET", running.bucket.clone()),
        ("SANDYARD_S3_ACCESS_KEY_ID", owner.id.clone()),
        ("SANDYARD_S3_SECRET_ACCESS_KEY", owner.secret.expose().to_owned()),
    ]);
    Ok(())
}

fn print(variables: &[(&str, String)]) {
    for (name, value) in variables {
        println!("export {name}={value}");
    }
}

/// Clients may be started in another folder.
fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("--certificates {}", path.display()))
}

/// A path as a shell reads it back; in quotes only where that is needed.
fn quoted(path: &Path) -> anyhow::Result<String> {
    let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c);
    if text.chars().all(plain) {
        return Ok(text.to_owned());
    }
    Ok(format!("'{}'", text.replace('\'', "'\\''")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_paths_back() -> anyhow::Result<()> {
        assert_eq!(quoted(Path::new("/a/b-1.pem"))?, "/a/b-1.pem");
        assert_eq!(quoted(Path::new("/a b/it's"))?, "'/a b/it'\\''s'");
        Ok(())
    }
}
