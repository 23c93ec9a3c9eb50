//! Connects `s3s`'s signature check to the grants.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::{S3Result, s3_error};

use crate::grant::{GrantOwner, GrantSource};
use crate::traffic::{Ledger, RequestContext, S3Caller};

/// Gives `s3s` the secret to check a signature with.
pub(crate) struct GrantAuth {
    pub(crate) grants: Arc<dyn GrantSource>,
}

#[async_trait]
impl S3Auth for GrantAuth {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        match self.grants.grant(access_key) {
            Some(grant) => Ok(grant.secret),
            None if !self.grants.is_ready() => {
                Err(s3_error!(ServiceUnavailable, "the server is starting"))
            }
            None => Err(s3_error!(InvalidAccessKeyId, "the access key is unknown or was revoked")),
        }
    }
}

/// Runs once the signature is right: hands the grant to the guard and counts the request.
pub(crate) struct GrantAccess {
    pub(crate) grants: Arc<dyn GrantSource>,
    pub(crate) ledger: Arc<Ledger>,
}

#[async_trait]
impl S3Access for GrantAccess {
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        let Some(credentials) = cx.credentials() else {
            return Err(s3_error!(AccessDenied, "requests must be signed"));
        };
        let Some(grant) = self.grants.grant(&credentials.access_key) else {
            return Err(s3_error!(InvalidAccessKeyId, "the access key was revoked"));
        };
        let context = cx.extensions_mut().get::<Arc<RequestContext>>().cloned();
        let source = context.as_ref().and_then(|context| context.source());
        if grant.source.is_some() && grant.source != source {
            return Err(s3_error!(AccessDenied, "the access key is not good from this address"));
        }
        let counters = match &grant.owner {
            GrantOwner::Sandbox(sandbox) => Some(self.ledger.counters(sandbox)),
            GrantOwner::Installation => None,
        };
        if let Some(counters) = &counters {
            counters.requests.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(context) = context {
            context.identify(S3Caller { owner: grant.owner.clone(), counters });
        }
        cx.extensions_mut().insert(Arc::new(grant));
        Ok(())
    }
}
