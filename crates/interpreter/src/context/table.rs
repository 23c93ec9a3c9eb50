//! All contexts.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OnceCell, mpsc, oneshot, watch};
use uuid::Uuid;

use super::driver::ContextDriver;
use super::{Context, ContextCommand, ContextError, ContextInfo, QUEUE};
use crate::claim::DaemonClaim;
use crate::kernel::{Kernel, KernelError, KernelSettings, KernelSpecs};
use crate::language::{DEFAULT_LANGUAGE, Dialect, normalise};
use crate::tasks::InterpreterTasks;
use crate::workspace;

/// The default contexts that are there from the start (code-interpreter 3).
const AT_START: [&str; 2] = [DEFAULT_LANGUAGE, "javascript"];
/// How many contexts there may be, unless [`LIMIT_VARIABLE`] says otherwise.
const LIMIT: usize = 64;
/// A global variable, as of the template's environment.
const LIMIT_VARIABLE: &str = "SANDYARD_MAX_CONTEXTS";
/// The file with the ids of all contexts, for the next interpreter.
const IDS: &str = "contexts";

/// Where contexts live.
#[derive(Clone, Debug)]
pub struct ContextSettings {
    /// Where and how kernels are started.
    pub kernels: KernelSettings,
    /// Which kernels there are.
    pub specs: KernelSpecs,
    /// The working directory of contexts for which none is named (code-interpreter 3: `/home/user`).
    pub cwd: PathBuf,
}

/// What the contexts' tasks share.
pub(super) struct SharedContexts {
    pub(super) kernels: KernelSettings,
    specs: KernelSpecs,
    cwd: PathBuf,
    claim: watch::Receiver<Option<DaemonClaim>>,
    workspace: Mutex<Option<PathBuf>>,
}

impl SharedContexts {
    /// All global variables, as soon as they are known.
    pub(super) fn globals(&self) -> Option<BTreeMap<String, String>> {
        self.claim.borrow().as_ref().map(|claim| claim.variables.clone())
    }

    /// The working directory of default contexts: a session's workspace, once there is one.
    pub(super) fn default_cwd(&self) -> PathBuf {
        let mut found = lock(&self.workspace);
        // It comes with the claim and stays.
        if found.is_none() && self.claim.borrow().is_some() {
            *found = Some(workspace::find().unwrap_or_else(|| self.cwd.clone()));
        }
        found.clone().unwrap_or_else(|| self.cwd.clone())
    }
}

/// All contexts.
pub struct Contexts {
    shared: Arc<SharedContexts>,
    table: Mutex<Table>,
    /// Those that the interpreter before this one had.
    lost: HashSet<String>,
    /// Default contexts by language, made on first use, one at a time for each language.
    defaults: Mutex<HashMap<String, Arc<OnceCell<String>>>>,
    tasks: InterpreterTasks,
}

#[derive(Default)]
struct Table {
    /// In the order in which they were made.
    contexts: Vec<Arc<Context>>,
    /// Those that are being made.
    coming: usize,
}

impl Contexts {
    /// None yet, after those of an interpreter before.
    ///
    /// # Errors
    /// If what that one has left cannot be removed.
    pub fn new(
        settings: ContextSettings,
        claim: watch::Receiver<Option<DaemonClaim>>,
    ) -> io::Result<Self> {
        let run_folder = &settings.kernels.run_folder;
        let lost = match fs::read_to_string(run_folder.join(IDS)) {
            Ok(ids) => ids.lines().map(str::to_owned).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => HashSet::new(),
            Err(error) => return Err(error),
        };
        // Sockets of kernels that have ended with their interpreter.
        match fs::remove_dir_all(run_folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        fs::create_dir_all(run_folder)?;
        let ContextSettings { kernels, specs, cwd } = settings;
        let shared = SharedContexts { kernels, specs, cwd, claim, workspace: Mutex::default() };
        let this = Self {
            shared: Arc::new(shared),
            table: Mutex::default(),
            lost,
            defaults: Mutex::default(),
            tasks: InterpreterTasks::default(),
        };
        this.remember();
        Ok(this)
    }

    /// Makes the default contexts that are there from the start, both at once, in their order.
    ///
    /// # Errors
    /// [`ContextError`], but not for a language that is not installed.
    pub async fn start(&self) -> Result<(), ContextError> {
        let made = AT_START.map(|language| async move {
            match self.make(language, None).await {
                Err(ContextError::Spec(error)) => {
                    crate::log!("no default context: {error}");
                    Ok(None)
                }
                made => made.map(Some),
            }
        });
        let [first, second] = made;
        let (first, second) = tokio::join!(first, second);
        for context in [first?, second?].into_iter().flatten() {
            let (language, id) = (context.language.clone(), context.id.clone());
            self.insert(context);
            lock(&self.defaults).insert(language, Arc::new(OnceCell::new_with(Some(id))));
        }
        Ok(())
    }

    /// Makes a context. If this is dropped there will be none.
    ///
    /// # Errors
    /// [`ContextError`]
    pub async fn create(
        &self,
        language: Option<&str>,
        cwd: Option<&str>,
    ) -> Result<ContextInfo, ContextError> {
        let cwd = cwd.map_or_else(|| self.shared.cwd.clone(), PathBuf::from);
        let context = self.make(&normalise(language), Some(cwd)).await?;
        let info = self.info(&context);
        self.insert(context);
        Ok(info)
    }

    /// All contexts, oldest first.
    pub fn list(&self) -> Vec<ContextInfo> {
        let contexts = lock(&self.table).contexts.clone();
        contexts.iter().map(|context| self.info(context)).collect()
    }

    /// Gives a context a new kernel.
    ///
    /// # Errors
    /// [`ContextError`]
    pub async fn restart(&self, id: &str) -> Result<(), ContextError> {
        let context = self.find(id)?;
        tell(&context, ContextCommand::Restart).await
    }

    /// Ends a context and its kernel.
    ///
    /// # Errors
    /// [`ContextError`]
    pub async fn remove(&self, id: &str) -> Result<(), ContextError> {
        let context = self.find(id)?;
        lock(&self.table).contexts.retain(|other| other.id != id);
        // The next use of its language makes a new one.
        lock(&self.defaults).retain(|_, default| default.get().is_none_or(|other| other != id));
        self.remember();
        tell(&context, ContextCommand::Remove).await
    }

    /// The context of a request (code-interpreter 3).
    ///
    /// # Errors
    /// [`ContextError`]
    pub(crate) async fn choose(
        &self,
        id: Option<&str>,
        language: Option<&str>,
    ) -> Result<Arc<Context>, ContextError> {
        match id {
            Some(id) => self.find(id),
            None => self.default_of(&normalise(language)).await,
        }
    }

    async fn default_of(&self, language: &str) -> Result<Arc<Context>, ContextError> {
        let cell = Arc::clone(lock(&self.defaults).entry(language.to_owned()).or_default());
        let id = cell
            .get_or_try_init(|| async {
                let context = self.make(language, None).await?;
                let id = context.id.clone();
                self.insert(context);
                Ok::<_, ContextError>(id)
            })
            .await?;
        self.find(id)
    }

    fn find(&self, id: &str) -> Result<Arc<Context>, ContextError> {
        let found = lock(&self.table).contexts.iter().find(|context| context.id == id).cloned();
        found.ok_or_else(|| match self.lost.contains(id) {
            true => ContextError::Lost(id.to_owned()),
            false => ContextError::NotFound(id.to_owned()),
        })
    }

    fn info(&self, context: &Context) -> ContextInfo {
        let default = || self.shared.default_cwd().to_string_lossy().into_owned();
        ContextInfo {
            id: context.id.clone(),
            language: context.language.clone(),
            cwd: context.cwd.clone().unwrap_or_else(default),
        }
    }

    /// Starts a kernel and the task that owns it.
    async fn make(
        &self,
        language: &str,
        cwd: Option<PathBuf>,
    ) -> Result<Arc<Context>, ContextError> {
        let shared = Arc::clone(&self.shared);
        let spec = shared.specs.find(language)?;
        let _place = self.reserve()?;
        let directory = cwd.clone().unwrap_or_else(|| shared.default_cwd());
        if cwd.is_some() && !directory.is_dir() {
            return Err(ContextError::Directory(directory.to_string_lossy().into_owned()));
        }
        let kernel = Kernel::start(&spec, &shared.kernels, &directory).await?;
        let (requests, waiting) = mpsc::channel(QUEUE);
        let (commands, told) = mpsc::channel(1);
        let id = Uuid::new_v4().to_string();
        let driver = ContextDriver {
            shared,
            id: id.clone(),
            dialect: Dialect::of(language),
            spec,
            cwd: cwd.clone(),
            kernel: Some(kernel),
            entered: directory,
            globals: None,
            uncounted: 0,
            unreported: None,
            requests: waiting,
            commands: told,
        };
        self.tasks.spawn(driver.run());
        let cwd = cwd.map(|cwd| cwd.to_string_lossy().into_owned());
        Ok(Arc::new(Context { id, language: language.to_owned(), cwd, requests, commands }))
    }

    /// A place among the contexts, until the context is in the table or was given up.
    fn reserve(&self) -> Result<Coming<'_>, ContextError> {
        let globals = self.shared.claim.borrow();
        let limit = globals
            .as_ref()
            .and_then(|claim| claim.variables.get(LIMIT_VARIABLE)?.parse().ok())
            .unwrap_or(LIMIT);
        let mut table = lock(&self.table);
        if table.contexts.len() + table.coming >= limit {
            return Err(ContextError::TooMany(limit));
        }
        table.coming += 1;
        Ok(Coming(self))
    }

    fn insert(&self, context: Arc<Context>) {
        lock(&self.table).contexts.push(context);
        self.remember();
    }

    /// Writes down which contexts there are, with those that were lost before, so that the next interpreter can say of
    /// them that they were.
    fn remember(&self) {
        let mut ids: Vec<String> = self.lost.iter().cloned().collect();
        ids.extend(lock(&self.table).contexts.iter().map(|context| context.id.clone()));
        let file = self.shared.kernels.run_folder.join(IDS);
        if let Err(error) = write_whole(&file, &ids.join("\n")) {
            crate::log!("failed to write {}: {error}", file.display());
        }
    }
}

/// A context that is being made.
struct Coming<'a>(&'a Contexts);

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        lock(&self.0.table).coming -= 1;
    }
}

async fn tell(
    context: &Context,
    command: impl FnOnce(oneshot::Sender<Result<(), KernelError>>) -> ContextCommand,
) -> Result<(), ContextError> {
    let removed = || ContextError::Removed(context.id.clone());
    let (answer, answered) = oneshot::channel();
    context.commands.send(command(answer)).await.map_err(|_| removed())?;
    Ok(answered.await.map_err(|_| removed())??)
}

fn write_whole(file: &Path, text: &str) -> io::Result<()> {
    let new = file.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(new, file)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds one can panic between two changes that belong together.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
