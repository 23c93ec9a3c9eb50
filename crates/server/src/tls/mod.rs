//! TLS for the proxy's port: certificates that are made here and signed by an authority of this installation,
//! or the user's own.

mod authority;
mod bundle;

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context as _;
use time::OffsetDateTime;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tracing::{info, warn};

use crate::data_dir::DataDir;
use crate::domain::Domain;

pub use authority::CA_FILE;
pub use bundle::{BUNDLE_FILE, write_bundle};

use authority::Authority;

/// Between two looks at whether the certificate is still good.
const LOOK: Duration = Duration::from_secs(3600);

/// A certificate of the user's own, both files in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate, and after it those that lead to its root.
    pub certificates: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Where certificates come from.
enum CertificateSource {
    Files(CertificateFiles),
    Local { data: DataDir, domain: Domain },
}

/// What the proxy shows to clients that speak TLS.
pub struct Tls {
    source: CertificateSource,
    current: Arc<Current>,
    config: Arc<ServerConfig>,
}

/// A certificate, and when it has to be replaced; `None` if nobody here knows.
struct Issued {
    certified: Arc<CertifiedKey>,
    renew_at: Option<OffsetDateTime>,
}

/// The certificate of new connections.
struct Current(RwLock<Issued>);

impl Current {
    fn renew_at(&self) -> Option<OffsetDateTime> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).renew_at
    }
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Current")
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // The same for every name: there is one domain, and addresses come without a name.
        let issued = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Some(issued.certified.clone())
    }
}

impl Tls {
    /// Takes the user's certificate, or makes one for the domain.
    ///
    /// # Errors
    /// If the files cannot be read, or do not fit each other.
    pub fn open(
        data: &DataDir,
        domain: &Domain,
        files: Option<&CertificateFiles>,
    ) -> anyhow::Result<Self> {
        let source = match files {
            Some(files) => CertificateSource::Files(files.clone()),
            None => CertificateSource::Local { data: data.clone(), domain: domain.clone() },
        };
        let provider = Arc::new(ring::default_provider());
        let issued = source.issue(&provider, OffsetDateTime::now_utc())?;
        let current = Arc::new(Current(RwLock::new(issued)));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("cannot set TLS up")?
            .with_no_client_auth()
            .with_cert_resolver(current.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { source, current, config: Arc::new(config) })
    }

    /// Shakes hands with clients.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.clone())
    }

    /// Replaces the certificate in time, or when its files change, until dropped. Connections keep what
    /// they began with.
    pub async fn keep_fresh(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            self.refresh(OffsetDateTime::now_utc());
        }
    }

    fn refresh(&self, now: OffsetDateTime) {
        if self.current.renew_at().is_some_and(|due| now < due) {
            return;
        }
        let provider = self.config.crypto_provider();
        match self.source.issue(provider, now) {
            Ok(issued) => {
                if issued.renew_at.is_some() {
                    info!("the certificate of the proxy's port is renewed");
                }
                *self.current.0.write().unwrap_or_else(PoisonError::into_inner) = issued;
            }
            Err(error) => warn!("the certificate of the proxy's port stays as it is: {error:#}"),
        }
    }
}

impl CertificateSource {
    fn issue(&self, provider: &CryptoProvider, now: OffsetDateTime) -> anyhow::Result<Issued> {
        match self {
            Self::Local { data, domain } => {
                Authority::open(data, domain, now)?.issue(domain, provider, now)
            }
            Self::Files(files) => files.read(provider),
        }
    }
}

impl CertificateFiles {
    fn read(&self, provider: &CryptoProvider) -> anyhow::Result<Issued> {
        let setting =
            |setting: &str, path: &PathBuf| format!("{setting}: cannot use {}", path.display());
        let about_certificates = || setting("tls.certificate_file", &self.certificates);
        let chain = CertificateDer::pem_file_iter(&self.certificates)
            .with_context(about_certificates)?
            .collect::<Result<Vec<_>, _>>()
            .with_context(about_certificates)?;
        anyhow::ensure!(!chain.is_empty(), "{}: no certificate is in it", about_certificates());
        let about_key = || setting("tls.key_file", &self.key);
        let key = PrivateKeyDer::from_pem_file(&self.key).with_context(about_key)?;
        let certified = CertifiedKey::from_der(chain, key, provider).with_context(about_key)?;
        Ok(Issued { certified: Arc::new(certified), renew_at: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(tls: &Tls) -> Arc<CertifiedKey> {
        tls.current.0.read().expect("whole").certified.clone()
    }

    fn open(folder: &tempfile::TempDir) -> anyhow::Result<Tls> {
        Tls::open(&DataDir::open(folder.path())?, &"sbx.localhost".parse()?, None)
    }

    #[test]
    fn a_certificate_is_renewed_in_time_and_not_before() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let tls = open(&folder)?;
        let first = shown(&tls);
        let due = tls.current.renew_at().expect("known");
        tls.refresh(due - time::Duration::SECOND);
        assert!(Arc::ptr_eq(&shown(&tls), &first));
        tls.refresh(due);
        assert_ne!(shown(&tls).cert, first.cert);
        assert!(tls.current.renew_at() > Some(due));
        Ok(())
    }

    #[test]
    fn files_of_the_users_own_are_read_again_and_bad_ones_change_nothing() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let (certificates, key) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
        let files = CertificateFiles { certificates: certificates.clone(), key: key.clone() };
        let write = || -> anyhow::Result<()> {
            let made = rcgen::generate_simple_self_signed(["a.example".to_owned()])?;
            std::fs::write(&certificates, made.cert.pem())?;
            Ok(std::fs::write(&key, made.signing_key.serialize_pem())?)
        };
        let data = DataDir::open(&folder.path().join("data"))?;
        let open = || Tls::open(&data, &"a.example".parse()?, Some(&files));
        let missing = format!("{:#}", open().err().expect("no file"));
        assert!(missing.contains("tls.certificate_file"), "{missing}");

        write()?;
        let tls = open()?;
        let first = shown(&tls);
        write()?;
        tls.refresh(OffsetDateTime::now_utc());
        let second = shown(&tls);
        assert_ne!(second.cert, first.cert);

        // The certificate of another key.
        let other = rcgen::generate_simple_self_signed(["a.example".to_owned()])?;
        std::fs::write(&certificates, other.cert.pem())?;
        tls.refresh(OffsetDateTime::now_utc());
        assert!(Arc::ptr_eq(&shown(&tls), &second));
        let unfit = format!("{:#}", open().err().expect("unfit"));
        assert!(unfit.contains("tls.key_file"), "{unfit}");
        Ok(())
    }
}
