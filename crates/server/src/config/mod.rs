//! The server's configuration: defaults < file < `SANDYARD_*` < flags, read whole, every bad value in
//! one report (design 2).
//!
//! Keys are written `section.name` in reports, as tables in the TOML file, and
//! `SANDYARD_SECTION__NAME` in the environment.

mod reader;
mod template;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{Environment, File, FileFormat};
use sandyard_core::PoolSettings;
use sandyard_types::{BucketName, Cache, Secret, Template};

pub use reader::BadConfig;
use reader::{ConfigReader, required, secret, text};

use crate::domain::Domain;
use crate::tls::CertificateFiles;

/// Where a workspace's objects are.
#[derive(Clone, Debug)]
pub enum StoreConfig {
    /// In the data folder.
    Embedded,
    /// In another S3 service.
    Upstream {
        /// Its base URL.
        endpoint: String,
        /// The region to sign for.
        region: String,
        /// Bucket in the path, not in the host name.
        path_style: bool,
        /// The server's own access key id there.
        access_key_id: String,
        /// The server's own secret there.
        secret_access_key: Secret,
    },
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The whole configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the installation keeps what outlives the server.
    pub data_dir: PathBuf,
    /// Listener of the REST API.
    pub api_listen: SocketAddr,
    /// Base URL of the REST API as clients reach it, if not at the listener's own address.
    pub api_public_url: Option<String>,
    /// An API key to accept from the first start on, in the place of a random one.
    pub api_key: Option<Secret>,
    /// Listener of the sandbox proxy.
    pub proxy_listen: SocketAddr,
    /// Base URL of the sandbox proxy as clients reach it, if not at the listener's own address.
    pub proxy_public_url: Option<String>,
    /// The domain that running sandboxes report; absent: `sbx.localhost` and the proxy's port.
    pub proxy_domain: Option<Domain>,
    /// A certificate of the user's own; absent: made and signed here.
    pub tls: Option<CertificateFiles>,
    /// Listener of the S3 gateway for the owner. Sandboxes reach it at the same port on the engine
    /// network's own address.
    pub gateway_listen: SocketAddr,
    /// Base URL of the S3 gateway as the owner reaches it, if not at the listener's own address.
    pub gateway_public_url: Option<String>,
    /// The gateway's base URL as sandboxes reach it, for a server in a container.
    pub gateway_endpoint: Option<String>,
    /// Whether a sandbox's S3 key is good from its container's address only.
    pub gateway_keys_by_address: bool,
    /// The container engine.
    pub docker_host: String,
    /// An existing network for sandboxes.
    pub docker_network: Option<String>,
    /// The executor bundle; absent: beside this program.
    pub bundle: Option<PathBuf>,
    /// The object store.
    pub store: StoreConfig,
    /// The bucket of the workspaces.
    pub bucket: BucketName,
    /// Local cache of a workspace's driver.
    pub cache: Cache,
    /// The longest life of a sandbox.
    pub max_length: Duration,
    /// Sandboxes a team may have at once.
    pub max_sandboxes: usize,
    /// Limit of the durability barrier.
    pub flush: Duration,
    /// Between two looks at what sandboxes have written.
    pub disk_watch: Duration,
    /// The memory that all frozen sandboxes may keep together, in bytes; absent: as much as there is.
    pub frozen_memory: Option<u64>,
    /// How containers are kept in stock.
    pub pool: PoolSettings,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Which log lines there are, in `tracing`'s filter syntax.
    pub log_filter: String,
    /// All templates, `base` first.
    pub templates: Vec<Template>,
}

impl Config {
    /// Reads the configuration. `overrides` are the command line's `key = value` pairs.
    ///
    /// # Errors
    /// [`BadConfig`] with every value that is wrong, every key that does not exist.
    pub fn load(file: Option<&Path>, overrides: &[(String, String)]) -> Result<Self, BadConfig> {
        // Only what has the form of a setting: `sandyard env` and the scripts have variables of the
        // same beginning that are none.
        let setting = |name: &str| name == "SANDYARD_DATA_DIR" || name.contains("__");
        let variables = std::env::vars().filter(|(name, _)| setting(name)).collect();
        Self::load_with(file, environment(variables), overrides)
    }

    fn load_with(
        file: Option<&Path>,
        environment: Environment,
        overrides: &[(String, String)],
    ) -> Result<Self, BadConfig> {
        let mut builder = config::Config::builder();
        if let Some(file) = file {
            // Named by the user: it must be there.
            builder = builder.add_source(File::from(file).format(FileFormat::Toml).required(true));
        }
        builder = builder.add_source(environment);
        for (key, value) in overrides {
            let set = builder.set_override(key, value.as_str());
            builder = set.map_err(|e| BadConfig::one(format!("{key}: {e}")))?;
        }
        let layers = builder.build().map_err(|e| BadConfig::one(e.to_string()))?;
        let mut reader = ConfigReader::new(layers)?;
        let config = Self::read(&mut reader);
        reader.finish(config)
    }

    fn read(r: &mut ConfigReader) -> Option<Self> {
        let loopback = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        let data_dir = r.optional("data_dir", |v| text(v).map(PathBuf::from));
        let data_dir = data_dir.or_else(default_data_dir);
        if data_dir.is_none() {
            r.fail(
                "data_dir: not set, and neither XDG_DATA_HOME nor HOME is there to derive it from",
            );
        }
        let api_listen = r.value("api.listen", loopback(3000), reader::parsed);
        let api_public_url = r.optional("api.public_url", base_url);
        let api_key = r.secret("api.key", api_key);
        let proxy_listen = r.value("proxy.listen", loopback(3002), reader::parsed);
        let proxy_public_url = r.optional("proxy.public_url", base_url);
        let proxy_domain = r.optional("proxy.domain", reader::parsed);
        let tls = read_tls(r);
        let gateway_listen = r.value("gateway.listen", loopback(3003), reader::parsed);
        let gateway_public_url = r.optional("gateway.public_url", base_url);
        let gateway_endpoint = r.optional("gateway.endpoint", base_url);
        let gateway_keys_by_address = r.value("gateway.keys_by_address", true, reader::boolean);
        let docker_host = r.value("docker.host", default_docker_host(), docker_host);
        let docker_network = r.optional("docker.network", text);
        let bundle = r.optional("executor.bundle", |v| text(v).map(PathBuf::from));
        let store = read_store(r);
        let bucket = r.value("store.bucket", "sandyard".to_owned(), text);
        let bucket = r.check("store.bucket", bucket.map(|b| b.parse::<BucketName>()));
        let cache = read_cache(r);
        let hours = r.value("limits.max_length_hours", 24, |v| reader::within(v, 1, 24 * 365));
        let max_sandboxes = r.value("limits.max_sandboxes", 100, |v| reader::within(v, 1, 10_000));
        let flush = r.value("limits.flush_secs", 30, |v| reader::within(v, 1, 3600));
        let disk_watch = r.value("limits.disk_watch_secs", 10, |v| reader::within(v, 1, 3600));
        let pool = PoolSettings::default();
        let pool_max = r.value("pool.max", pool.max, |v| reader::within(v, 0, 1000));
        let pool_memory =
            r.value("pool.memory_mib", pool.memory_mib, |v| reader::within(v, 0, 1 << 20));
        let frozen = r.optional("limits.frozen_memory_mib", |v| reader::within(v, 1, 1 << 24));
        let log_format = r.value("log.format", LogFormat::Text, log_format);
        let log_filter = r.value("log.filter", "info,s3s=off".to_owned(), text);
        let templates = template::read_all(r);
        let loopback_only = [("api.listen", api_listen), ("proxy.listen", proxy_listen)];
        for (key, listen) in loopback_only {
            if listen.is_some_and(|a| !a.ip().is_loopback()) && api_key.is_none() {
                r.fail(format!(
                    "{key}: {} is not a loopback address, so others could reach this server: set \
                     api.key (or api.key_file) to a key of your own first",
                    listen.map(|a| a.to_string()).unwrap_or_default()
                ));
            }
        }
        Some(Self {
            data_dir: data_dir?,
            api_listen: api_listen?,
            api_public_url,
            api_key,
            proxy_listen: proxy_listen?,
            proxy_public_url,
            proxy_domain,
            tls,
            gateway_listen: gateway_listen?,
            gateway_public_url,
            gateway_endpoint,
            gateway_keys_by_address: gateway_keys_by_address?,
            docker_host: docker_host?,
            docker_network,
            bundle,
            store: store?,
            bucket: bucket?,
            cache: cache?,
            max_length: Duration::from_secs(u64::from(hours?) * 3600),
            max_sandboxes: usize::try_from(max_sandboxes?).ok()?,
            flush: Duration::from_secs(u64::from(flush?)),
            disk_watch: Duration::from_secs(u64::from(disk_watch?)),
            frozen_memory: frozen.map(|mib| u64::from(mib) << 20),
            pool: PoolSettings { max: pool_max?, memory_mib: pool_memory? },
            log_format: log_format?,
            log_filter: log_filter?,
            templates: templates?,
        })
    }
}

fn environment(variables: std::collections::HashMap<String, String>) -> Environment {
    Environment::with_prefix("SANDYARD")
        .prefix_separator("_")
        .separator("__")
        .source(Some(variables))
}

fn read_store(r: &mut ConfigReader) -> Option<StoreConfig> {
    let backend = r.value("store.backend", "embedded".to_owned(), |v| {
        let text = text(v)?;
        match text.as_str() {
            "embedded" | "upstream" => Ok(text),
            _ => Err("it is 'embedded' or 'upstream'".to_owned()),
        }
    });
    let endpoint = r.optional("store.endpoint", base_url);
    let region = r.value("store.region", "us-east-1".to_owned(), text);
    let path_style = r.value("store.path_style", true, reader::boolean);
    let access_key_id = r.secret("store.access_key_id", secret);
    let secret_access_key = r.secret("store.secret_access_key", secret);
    if backend? == "embedded" {
        return Some(StoreConfig::Embedded);
    }
    // All three before the first `?`, so that one report names all that is missing.
    let why = "store.backend is 'upstream'";
    let endpoint = required(r, "store.endpoint", endpoint, why);
    let access_key_id = required(r, "store.access_key_id", access_key_id, why);
    let secret_access_key = required(r, "store.secret_access_key", secret_access_key, why);
    Some(StoreConfig::Upstream {
        endpoint: endpoint?,
        region: region?,
        path_style: path_style?,
        access_key_id: access_key_id?.reveal().to_owned(),
        secret_access_key: secret_access_key?,
    })
}

/// Both files or neither.
fn read_tls(r: &mut ConfigReader) -> Option<CertificateFiles> {
    let certificates = r.optional("tls.certificate_file", |v| text(v).map(PathBuf::from));
    let key = r.optional("tls.key_file", |v| text(v).map(PathBuf::from));
    match (certificates, key) {
        (Some(certificates), Some(key)) => Some(CertificateFiles { certificates, key }),
        (None, None) => None,
        (Some(_), None) => required(r, "tls.key_file", None, "tls.certificate_file is set"),
        (None, Some(_)) => required(r, "tls.certificate_file", None, "tls.key_file is set"),
    }
}

fn read_cache(r: &mut ConfigReader) -> Option<Cache> {
    let kind = r.value("workspace.cache", "disk".to_owned(), text);
    let size = r.optional("workspace.cache_mib", |v| reader::within(v, 32, 1 << 20));
    match kind?.as_str() {
        "disk" => Some(Cache::Disk { limit_mib: size.unwrap_or(1024) }),
        "tmpfs" => Some(Cache::Tmpfs { size_mib: size.unwrap_or(100) }),
        other => {
            r.fail(format!("workspace.cache: '{other}' is neither 'disk' nor 'tmpfs'"));
            None
        }
    }
}

fn default_data_dir() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_DATA_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".local/share")))
        .map(|base| base.join("sandyard"))
}

/// What the Docker client itself would use.
fn default_docker_host() -> String {
    std::env::var("DOCKER_HOST")
        .ok()
        .filter(|host| !host.is_empty())
        .unwrap_or_else(|| "unix:///var/run/docker.sock".to_owned())
}

fn docker_host(value: config::Value) -> Result<String, String> {
    let host = text(value)?;
    if host.starts_with("unix://") || host.starts_with("tcp://") {
        return Ok(host);
    }
    Err(format!("'{host}' is neither 'unix://<path>' nor 'tcp://<host>:<port>'"))
}

fn base_url(value: config::Value) -> Result<String, String> {
    let url = text(value)?;
    let parsed: Result<http::Uri, _> = url.parse();
    let ok = parsed.is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.authority().is_some()
    });
    if ok {
        Ok(url.trim_end_matches('/').to_owned())
    } else {
        Err(format!("'{url}' is no base URL: write 'http://host:port' or 'https://host'"))
    }
}

fn api_key(value: config::Value) -> Result<Secret, String> {
    let key = text(value)?;
    let hex = key.strip_prefix("e2b_").unwrap_or_default();
    if hex.len() >= 32 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return Ok(Secret::new(key));
    }
    Err("an API key is 'e2b_' and at least 32 lower-case hex digits".to_owned())
}

fn log_format(value: config::Value) -> Result<LogFormat, String> {
    match text(value)?.as_str() {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        other => Err(format!("'{other}' is neither 'text' nor 'json'")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(
        toml: &str,
        environment: &[(&str, &str)],
        flags: &[(&str, &str)],
    ) -> Result<Config, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("sandyard.toml");
        std::fs::write(&file, toml).expect("written");
        let pairs = |list: &[(&str, &str)]| {
            list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Vec<_>>()
        };
        let source = super::environment(pairs(environment).into_iter().collect());
        Config::load_with(Some(&file), source, &pairs(flags)).map_err(|e| e.to_string())
    }

    #[test]
    fn later_layers_win() {
        let file = "[api]\nlisten = \"127.0.0.1:1\"\n[proxy]\nlisten = \"127.0.0.1:2\"\n\
                    [gateway]\nlisten = \"127.0.0.1:3\"\n";
        let environment = [
            ("SANDYARD_PROXY__LISTEN", "127.0.0.1:20"),
            ("SANDYARD_GATEWAY__LISTEN", "127.0.0.1:30"),
        ];
        let config = load(file, &environment, &[("gateway.listen", "127.0.0.1:300")]);
        let config = config.expect("valid");
        let ports =
            [config.api_listen, config.proxy_listen, config.gateway_listen].map(|a| a.port());
        assert_eq!(ports, [1, 20, 300]);
        assert_eq!(config.max_length, Duration::from_secs(24 * 3600));
        let names: Vec<&str> = config.templates.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["base", "code-interpreter-v1", "code-interpreter-full"]);
    }

    #[test]
    fn every_bad_value_is_in_one_report() {
        let file = "nonsense = 1\n[api]\nlisten = \"here\"\nport = 3\n[store]\nbackend = \"tape\"\n\
                    bucket = \"UPPER\"\n[limits]\nflush_secs = 0\n[workspace]\ncache = \"cloud\"\n\
                    [[templates]]\nname = \"Bad Name\"\n";
        let report = load(file, &[("SANDYARD_LOG__FORMAT", "xml")], &[]).expect_err("bad");
        for part in [
            "nonsense",
            "api.listen",
            "api.port",
            "store.backend",
            "store.bucket",
            "limits.flush_secs",
            "workspace.cache",
            "log.format",
            "templates[0].name",
            "templates[0].image",
        ] {
            assert!(report.contains(part), "'{part}' is missing in:\n{report}");
        }
    }

    #[test]
    fn a_file_that_is_not_toml_or_not_there_is_named() {
        let report = load("= x", &[], &[]).expect_err("bad");
        assert!(report.contains("sandyard.toml"), "{report}");
        let missing = Config::load(Some(Path::new("/nonexistent/s.toml")), &[]).expect_err("bad");
        assert!(missing.to_string().contains("/nonexistent/s.toml"), "{missing}");
    }

    #[test]
    fn others_may_be_let_in_only_with_a_key_of_ones_own() {
        let open = [("api.listen", "0.0.0.0:3000")];
        let report = load("", &[], &open).expect_err("no key");
        assert!(report.contains("api.key"), "{report}");
        let key = format!("e2b_{}", "0".repeat(40));
        let config = load("", &[("SANDYARD_API__KEY", &key)], &open).expect("valid");
        assert_eq!(config.api_key.map(|k| k.reveal().to_owned()), Some(key));
    }

    #[test]
    fn a_secret_comes_from_a_file_too_and_never_from_the_command_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("secret");
        std::fs::write(&file, "  minio-secret\n").expect("written");
        let path = file.to_str().expect("text");
        let flags = [
            ("store.backend", "upstream"),
            ("store.endpoint", "http://127.0.0.1:9000/"),
            ("store.secret_access_key_file", path),
        ];
        let config = load("", &[("SANDYARD_STORE__ACCESS_KEY_ID", "id")], &flags).expect("valid");
        let StoreConfig::Upstream { endpoint, secret_access_key, .. } = config.store else {
            panic!("not upstream");
        };
        assert_eq!(endpoint, "http://127.0.0.1:9000");
        assert_eq!(secret_access_key.reveal(), "minio-secret");
    }

    #[test]
    fn public_urls_are_base_urls() {
        let environment = [
            ("SANDYARD_API__PUBLIC_URL", "http://127.0.0.1:13000/"),
            ("SANDYARD_PROXY__PUBLIC_URL", "https://sandboxes.example"),
        ];
        let config = load("", &environment, &[]).expect("valid");
        assert_eq!(config.api_public_url.as_deref(), Some("http://127.0.0.1:13000"));
        assert_eq!(config.proxy_public_url.as_deref(), Some("https://sandboxes.example"));
        assert_eq!(config.gateway_public_url, None);
        let report = load("", &[("SANDYARD_GATEWAY__PUBLIC_URL", "localhost:3003")], &[]);
        assert!(report.expect_err("no scheme").contains("gateway.public_url"));
    }

    #[test]
    fn a_certificate_comes_with_its_key() {
        let file = "[tls]\ncertificate_file = \"/c.pem\"\n";
        let report = load(file, &[], &[]).expect_err("no key");
        assert!(report.contains("tls.key_file"), "{report}");
        let key = [("SANDYARD_TLS__KEY_FILE", "/k.pem")];
        let files = load(file, &key, &[]).expect("valid").tls.expect("set");
        assert_eq!((files.certificates, files.key), ("/c.pem".into(), "/k.pem".into()));
        assert!(load("", &[("SANDYARD_PROXY__DOMAIN", "localhost:3002")], &[]).is_err());
    }

    #[test]
    fn an_upstream_store_needs_its_members() {
        let report = load("[store]\nbackend = \"upstream\"\n", &[], &[]).expect_err("incomplete");
        for part in ["store.endpoint", "store.access_key_id", "store.secret_access_key"] {
            assert!(report.contains(part), "{report}");
        }
    }

    #[test]
    fn a_template_is_read_with_its_defaults() {
        let file = "[[templates]]\nname = \"py\"\nimage = \"python:3.11-slim\"\ncpu_count = 1\n\
                    memory_mib = 256\nsudo = false\n\
                    workspace_target = \"/workspace/sessions/{session_id}\"\n[templates.env]\nA = \"1\"\n";
        let config = load(file, &[], &[]).expect("valid");
        let template = config.templates.last().expect("the entry's");
        assert_eq!((template.name.as_str(), template.user.as_str()), ("py", "user"));
        assert_eq!((template.cpu_count, template.memory_mib, template.sudo), (1, 256, false));
        assert_eq!(template.id.as_str().len(), 20);
        assert_eq!(template.env.get("A").map(String::as_str), Some("1"));
        let twice = format!("{file}\n[[templates]]\nname = \"py\"\nimage = \"x\"\n");
        assert!(load(&twice, &[], &[]).expect_err("twice").contains("templates[1].name"));
    }
}
