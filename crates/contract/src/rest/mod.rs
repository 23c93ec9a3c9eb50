//! Bodies of the REST API (control-plane 2, 3): what clients send and what they get back. Member names
//! are the contract's; members that a client may leave out are `Option`s.

mod error;
mod request;
mod sandbox;

pub use error::ErrorBody;
pub use request::{
    AutoResume, ConnectBody, CreateBody, EgressProxyBody, ForkBody, Iam, NetworkBody, PauseBody,
    RefreshBody, ResumeBody, SnapshotBody, TimeoutBody,
};
pub use sandbox::{
    CLIENT_ID, ForkedBody, LifecycleBody, ListedSandboxBody, PauseMode, SandboxBody,
    SandboxDetailBody, SnapshotInfoBody, TimeoutAction, VisibleState, VolumeMount,
};
