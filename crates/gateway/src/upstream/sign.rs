//! Signature Version 4 with the server's own key.

use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings,
    UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4::SigningParams;
use http::Request;
use s3s::{Body, S3Error, S3Result};

use super::UpstreamConfig;

/// The region whose buckets are made without naming it.
const DEFAULT_REGION: &str = "us-east-1";

pub(super) struct Signer {
    credentials: Credentials,
    region: String,
    settings: SigningSettings,
}

impl Signer {
    pub(super) fn new(config: &UpstreamConfig) -> Self {
        let mut settings = SigningSettings::default();
        // As S3 wants it: the path is signed as it is sent.
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        let token = config
            .session_token
            .as_ref()
            .map(|token| token.expose().to_owned());
        Self {
            credentials: Credentials::new(
                config.access_key_id.clone(),
                config.secret.expose(),
                token,
                None,
                "sandyard",
            ),
            region: config.region.clone(),
            settings,
        }
    }

    /// The region to name when a bucket is made.
    pub(super) fn location(&self) -> Option<&str> {
        (self.region != DEFAULT_REGION && self.region != "auto").then_some(self.region.as_str())
    }

    /// Signs the request as it stands. `payload` is the hex SHA-256 of the body where it is known.
    pub(super) fn sign(&self, request: &mut Request<Body>, payload: Option<&str>) -> S3Result<()> {
        let identity = self.credentials.clone().into();
        let params = SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name("s3")
            .time(SystemTime::now())
            .settings(self.settings.clone())
            .build()
            .map_err(S3Error::internal_error)?;
        let mut headers = Vec::with_capacity(request.headers().len());
        for (name, value) in request.headers() {
            headers.push((
                name.as_str(),
                value.to_str().map_err(S3Error::internal_error)?,
            ));
        }
        let body = match payload {
            Some(hash) => SignableBody::Precomputed(hash.to_owned()),
            None => SignableBody::UnsignedPayload,
        };
        let method = request.method().as_str();
        let uri = request.uri().to_string();
        let signable = SignableRequest::new(method, uri, headers.into_iter(), body);
        let signed = sign(signable.map_err(S3Error::internal_error)?, &params.into());
        let (instructions, _) = signed.map_err(S3Error::internal_error)?.into_parts();
        instructions.apply_to_request_http1x(request);
        Ok(())
    }
}
