//! Maintenance, begun and ended from the page of the hosts.

use actix_web::{HttpRequest, HttpResponse, web};
use docklet_types::time::Micros;
use docklet_types::view::BeginMaintenance;
use docklet_web::{Errors, MaintenanceForm};
use serde::Deserialize;

use super::flash::{self, Done};
use super::hosts::hosts_page;
use super::{REFUSED, go, is_for_form};
use crate::app::hosts::Hosts;
use crate::app::maintenance::Maintenances;
use crate::app::masters::Masters;
use crate::auth::Actor;
use crate::http::idempotency::Idempotency;
use crate::http::problem::ApiError;

/// The form as it arrives.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Form {
    message: String,
    /// Empty where nobody knows.
    minutes: String,
}

impl Form {
    fn request(&self) -> Result<BeginMaintenance, ApiError> {
        let until = match self.minutes.trim() {
            "" => None,
            text => {
                let minutes = text.parse::<u32>().ok().filter(|m| (1..=MOST_MINUTES).contains(m));
                let minutes = minutes.ok_or_else(|| {
                    ApiError::invalid("minutes", format!("Give a number of minutes from 1 to {MOST_MINUTES}."))
                })?;
                Some(Micros::now().plus_seconds(i64::from(minutes) * 60).to_string())
            }
        };
        Ok(BeginMaintenance { message: Some(self.message.clone()), until })
    }
}

/// A month.
const MOST_MINUTES: u32 = 43_200;

/// `POST /maintenance`
///
/// # Errors
/// `not_allowed`, `unavailable`
pub async fn begin(
    request: HttpRequest,
    actor: Actor,
    maintenances: web::Data<Maintenances>,
    hosts: web::Data<Hosts>,
    masters: web::Data<Masters>,
    form: web::Form<Form>,
) -> Result<HttpResponse, ApiError> {
    actor.must_be_admin()?;
    let begun = match form.request() {
        Ok(asked) => {
            let (maintenances, actor) = (maintenances.into_inner(), actor.clone());
            Idempotency::run(async move { Ok(maintenances.begin(&actor, &asked).await?) }).await
        }
        Err(error) => Err(error),
    };
    match begun {
        Ok(_) => Ok(flash::with(go("/hosts"), Done::MaintenanceBegun, "on")),
        Err(error) if is_for_form(&error.problem) => {
            let form = form.into_inner();
            let errors = Errors::from_problem(&error.problem);
            let typed = MaintenanceForm { message: form.message, minutes: form.minutes, errors };
            hosts_page(REFUSED, &request, &actor, &hosts, &masters, typed)
        }
        Err(error) => Err(error),
    }
}

/// `POST /maintenance/end`
///
/// # Errors
/// `not_allowed`, `unavailable`
pub async fn end(actor: Actor, maintenances: web::Data<Maintenances>) -> Result<HttpResponse, ApiError> {
    actor.must_be_admin()?;
    let maintenances = maintenances.into_inner();
    Idempotency::run(async move { Ok(maintenances.end(&actor).await?) }).await?;
    Ok(flash::with(go("/hosts"), Done::MaintenanceOver, "off"))
}
