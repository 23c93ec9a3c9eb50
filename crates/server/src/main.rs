//! `sandyard`: E2B sandboxes on a machine of one's own.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use sandyard::commands;
use sandyard::config::{Config, LogFormat};
use tracing_subscriber::EnvFilter;

/// E2B sandboxes on a machine of your own.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    /// Configuration file (TOML). SANDYARD_<SECTION>__<NAME> variables and the flags below win over it.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the installation keeps what outlives the server.
    #[arg(long, global = true, value_name = "FOLDER")]
    data_dir: Option<String>,
    /// Listener of the REST API; port 0 takes a free one.
    #[arg(long, global = true, value_name = "ADDRESS:PORT")]
    api_listen: Option<String>,
    /// Listener of the sandbox proxy; port 0 takes a free one.
    #[arg(long, global = true, value_name = "ADDRESS:PORT")]
    proxy_listen: Option<String>,
    /// Listener of the S3 gateway; port 0 takes a free one.
    #[arg(long, global = true, value_name = "ADDRESS:PORT")]
    gateway_listen: Option<String>,
    /// Any other setting, such as limits.max_sandboxes=10. Not for secrets: the command line is seen by
    /// others.
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    set: Vec<String>,
    #[command(subcommand)]
    command: CliCommand,
}

#[derive(Debug, Subcommand)]
enum CliCommand {
    /// Serve until a signal. Sandboxes stay over a restart.
    Up,
    /// End every sandbox of this installation, its network and the server.
    Down,
    /// Print what to export so that the E2B SDKs talk to the running server.
    Env {
        /// Over TLS and by host names, as with E2B itself: serves every release of the clients.
        #[arg(long)]
        tls: bool,
        /// Where the clients have copies of the data folder's `tls/ca.pem` and `tls/ca-bundle.pem`, if they
        /// cannot read that folder.
        #[arg(long, value_name = "FOLDER", requires = "tls")]
        certificates: Option<PathBuf>,
    },
    /// Try everything a sandbox needs, and say what is missing.
    Doctor,
    /// List sandboxes.
    Ls {
        /// List the containers that wait in the pool instead.
        #[arg(long)]
        pool: bool,
    },
    /// Kill sandboxes.
    Kill {
        /// Their ids.
        #[arg(required_unless_present = "all")]
        ids: Vec<String>,
        /// All of them.
        #[arg(long, conflicts_with = "ids")]
        all: bool,
    },
    /// Remove what earlier versions left on the engine.
    Gc {
        /// This version's executor volume too; it is made again when needed.
        #[arg(long)]
        all: bool,
    },
    /// Teams and their API keys.
    Team {
        #[command(subcommand)]
        command: TeamCommand,
    },
}

#[derive(Debug, Subcommand)]
enum TeamCommand {
    /// Add a team; prints its API key.
    Add {
        /// Its name, of [a-z0-9-_].
        name: String,
    },
}

/// Settings whose value must not stand on a command line.
const SECRET_SETTINGS: [&str; 3] = ["api.key", "store.access_key_id", "store.secret_access_key"];

impl Cli {
    fn overrides(&self) -> anyhow::Result<Vec<(String, String)>> {
        let flags = [
            ("data_dir", &self.data_dir),
            ("api.listen", &self.api_listen),
            ("proxy.listen", &self.proxy_listen),
            ("gateway.listen", &self.gateway_listen),
        ];
        let mut overrides: Vec<(String, String)> = flags
            .into_iter()
            .filter_map(|(key, value)| Some((key.to_owned(), value.clone()?)))
            .collect();
        for pair in &self.set {
            let (key, value) = pair
                .split_once('=')
                .with_context(|| format!("--set '{pair}': write it as key=value"))?;
            if SECRET_SETTINGS.contains(&key) {
                anyhow::bail!(
                    "--set {key}: others can see the command line; use the configuration file, an \
                     environment variable, or {key}_file"
                );
            }
            overrides.push((key.to_owned(), value.to_owned()));
        }
        Ok(overrides)
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sandyard: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let config = Config::load(cli.config.as_deref(), &cli.overrides()?)?;
    start_log(&config, matches!(cli.command, CliCommand::Up))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match &cli.command {
            CliCommand::Up => commands::up::run(config).await,
            CliCommand::Down => commands::down::run(&config).await,
            CliCommand::Env { tls: false, .. } => commands::env::run(&config),
            CliCommand::Env { tls: true, certificates } => {
                commands::env::run_tls(&config, certificates.as_deref())
            }
            CliCommand::Doctor => commands::doctor::run(&config).await,
            CliCommand::Ls { pool: false } => commands::sandboxes::list(&config).await,
            CliCommand::Ls { pool: true } => commands::sandboxes::list_pool(&config).await,
            CliCommand::Kill { ids, all } => commands::sandboxes::kill(&config, ids, *all).await,
            CliCommand::Gc { all } => commands::gc::run(&config, *all).await,
            CliCommand::Team { command: TeamCommand::Add { name } } => {
                commands::team::add(&config, name).await
            }
        }
    })
}

/// Log lines go to standard error. Commands other than `up` talk to a person and log faults only.
fn start_log(config: &Config, serving: bool) -> anyhow::Result<()> {
    let filter = if serving { config.log_filter.as_str() } else { "error,s3s=off" };
    let filter = EnvFilter::try_new(filter).with_context(|| format!("log.filter '{filter}'"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match config.log_format {
        LogFormat::Json => builder.json().try_init(),
        LogFormat::Text => {
            let colour = std::io::IsTerminal::is_terminal(&std::io::stderr());
            builder.with_ansi(colour).try_init()
        }
    };
    started.map_err(|error| anyhow::anyhow!("cannot start the log: {error}"))
}
