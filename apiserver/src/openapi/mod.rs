//! OpenAPI documents.

use apimachinery::status::ApiError;
use http::Response;

use crate::respond::{self, Body};
use crate::verbs::Call;

#[derive(Default)]
pub(crate) struct OpenApi {}

pub(crate) async fn answer(_call: &Call, _rest: &[&str]) -> Result<Response<Body>, ApiError> {
    Ok(respond::text(404, "404 page not found\n"))
}
