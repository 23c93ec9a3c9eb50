//! The installation's own certificate authority. Clients are told to trust it, so it is good for no names but
//! those of the installation's domain and `localhost`: a stolen key opens no other site.

use std::sync::Arc;

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, SerialNumber,
};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::sign::CertifiedKey;

use super::Issued;
use crate::data_dir::DataDir;
use crate::domain::Domain;
use crate::secrets::fill_random;

/// Certificate and key, in the data folder. One file, so that both are there or neither.
const KEPT_FILE: &str = "tls/authority.json";
/// The certificate alone, in the data folder: what clients are given.
pub const CA_FILE: &str = "tls/ca.pem";

/// How long the authority's own certificate is good, and how much of that is left when it is made anew.
const AUTHORITY_LIFE: Duration = Duration::days(3650);
const AUTHORITY_MARGIN: Duration = Duration::days(365);
/// The same for what it signs. Clients refuse what is good for more than two years.
const LIFE: Duration = Duration::days(90);
const MARGIN: Duration = Duration::days(30);
/// Clocks of virtual machines are behind at times.
const SKEW: Duration = Duration::days(1);

#[derive(Serialize, Deserialize)]
struct Kept {
    domain: String,
    /// Seconds since the Unix epoch.
    not_after: i64,
    /// PEM.
    certificate: String,
    /// PEM.
    key: String,
}

pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    not_after: OffsetDateTime,
}

impl Authority {
    /// The authority that is kept in the data folder, made where there is none. Near its end and for another
    /// domain it gets a new certificate, but keeps its key and name.
    pub(super) fn open(
        data: &DataDir,
        domain: &Domain,
        now: OffsetDateTime,
    ) -> anyhow::Result<Self> {
        let about = || format!("the authority in {}", data.path().join(KEPT_FILE).display());
        let kept: Option<Kept> = match data.read(KEPT_FILE)? {
            Some(text) => Some(serde_json::from_str(&text).with_context(about)?),
            None => None,
        };
        let key = match &kept {
            Some(kept) => KeyPair::from_pem(&kept.key).with_context(about)?,
            None => KeyPair::generate()?,
        };
        let name = format!("sandyard {}", data.installation()?);
        let good = kept.filter(|kept| {
            let left = kept.not_after - now.unix_timestamp();
            kept.domain == domain.name() && left > AUTHORITY_MARGIN.whole_seconds()
        });
        let (kept, params) = match good {
            Some(kept) => {
                let not_after = OffsetDateTime::from_unix_timestamp(kept.not_after)?;
                (kept, params(&name, domain, now, not_after)?)
            }
            None => {
                let not_after = now + AUTHORITY_LIFE;
                let params = params(&name, domain, now, not_after)?;
                let kept = Kept {
                    domain: domain.name().to_owned(),
                    not_after: not_after.unix_timestamp(),
                    certificate: params.self_signed(&key)?.pem(),
                    key: key.serialize_pem(),
                };
                data.write(KEPT_FILE, &serde_json::to_string_pretty(&kept)?)?;
                (kept, params)
            }
        };
        data.write(CA_FILE, &kept.certificate)?;
        Ok(Self { not_after: params.not_after, issuer: Issuer::new(params, key) })
    }

    /// A certificate for all hosts of the domain, and for the server's own address on this machine.
    pub(super) fn issue(
        &self,
        domain: &Domain,
        provider: &CryptoProvider,
        now: OffsetDateTime,
    ) -> anyhow::Result<Issued> {
        let name = domain.name();
        let names = [&format!("*.{name}"), name, "localhost", "127.0.0.1", "::1"];
        let mut params = CertificateParams::new(names.map(str::to_owned))?;
        params.distinguished_name = named("sandyard proxy");
        params.not_before = now - SKEW;
        params.not_after = (now + LIFE).min(self.not_after);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial()?);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let chain = vec![certificate.der().clone()];
        let certified = CertifiedKey::from_der(chain, key, provider)?;
        let renew_at = Some(params.not_after - MARGIN);
        Ok(Issued { certified: Arc::new(certified), renew_at })
    }
}

fn params(
    name: &str,
    domain: &Domain,
    now: OffsetDateTime,
    not_after: OffsetDateTime,
) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(name);
    params.not_before = now - SKEW;
    params.not_after = not_after;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial()?);
    // Not of addresses too: gRPC and Bun (BoringSSL) refuse an authority with such a constraint.
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![
            GeneralSubtree::DnsName(domain.name().to_owned()),
            GeneralSubtree::DnsName("localhost".to_owned()),
        ],
        excluded_subtrees: Vec::new(),
    });
    Ok(params)
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// Positive, and never the same twice, as the standard demands (RFC 5280, 4.1.2.2).
fn serial() -> anyhow::Result<SerialNumber> {
    let mut bytes = [0; 16];
    fill_random(&mut bytes)?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_restart_keeps_the_authority_and_the_key_is_its_owners_alone() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let data = DataDir::open(folder.path())?;
        let domain: Domain = "sbx.localhost".parse()?;
        let now = OffsetDateTime::now_utc();
        let certificate = |domain: &Domain, now| -> anyhow::Result<String> {
            Authority::open(&data, domain, now)?;
            Ok(std::fs::read_to_string(folder.path().join(CA_FILE))?)
        };
        let first = certificate(&domain, now)?;
        assert_eq!(certificate(&domain, now + Duration::days(1000))?, first);
        let mode = std::fs::metadata(folder.path().join(KEPT_FILE))?.permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!first.contains("PRIVATE"));

        let key = |data: &DataDir| -> anyhow::Result<String> {
            let kept: Kept = serde_json::from_str(&data.read(KEPT_FILE)?.context("kept")?)?;
            Ok(kept.key)
        };
        let kept = key(&data)?;
        // Near its end, and for another domain.
        let late = certificate(&domain, now + AUTHORITY_LIFE - AUTHORITY_MARGIN)?;
        assert_ne!(late, first);
        assert_ne!(certificate(&"other.example".parse()?, now)?, late);
        assert_eq!(key(&data)?, kept);
        Ok(())
    }

    #[test]
    fn a_damaged_file_is_an_error_that_names_it() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let data = DataDir::open(folder.path())?;
        data.write(KEPT_FILE, "{}")?;
        let opened = Authority::open(&data, &"a.b".parse()?, OffsetDateTime::now_utc());
        let error = format!("{:#}", opened.err().expect("damaged"));
        assert!(error.contains("authority.json"), "{error}");
        Ok(())
    }
}
