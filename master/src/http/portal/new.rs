//! A new vcluster.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use docklet_types::view::{CreateVcluster, SizeRequest};
use docklet_web::{Errors, Nav, NewFit, NewForm, NewPage, link};
use serde::Deserialize;

use super::{REFUSED, go, is_for_form, page, shell};
use crate::app::create::NewVcluster;
use crate::app::images::Images;
use crate::app::vclusters::Vclusters;
use crate::app::warm::WarmNodes;
use crate::auth::Actor;
use crate::http::idempotency::Idempotency;
use crate::http::problem::ApiError;
use crate::http::vclusters::fit as fit_view;

/// The form as it arrives: everything is text.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Form {
    name: String,
    nodes: String,
    image: String,
    cpu: String,
    memory_mib: String,
    disk_mib: String,
}

impl Form {
    /// The request that the texts mean.
    fn request(&self) -> Result<CreateVcluster, Errors> {
        let whole = |field: &str, text: &str| {
            text.trim()
                .parse::<i64>()
                .map_err(|_| Errors::one(field, format!("{:?} is not a whole number.", text.trim())))
        };
        let optional =
            |field: &str, text: &str| if text.trim().is_empty() { Ok(None) } else { whole(field, text).map(Some) };
        let cpu = match self.cpu.trim() {
            "" => None,
            text => Some(
                text.replace(',', ".")
                    .parse::<f64>()
                    .map_err(|_| Errors::one("cpu", format!("{text:?} is not a number.")))?,
            ),
        };
        Ok(CreateVcluster {
            name: self.name.trim().to_owned(),
            nodes: whole("nodes", &self.nodes)?,
            image: Some(self.image.trim()).filter(|i| !i.is_empty()).map(str::to_owned),
            size: Some(SizeRequest {
                cpu,
                memory_mib: optional("memory_mib", &self.memory_mib)?,
                disk_mib: optional("disk_mib", &self.disk_mib)?,
            }),
            ..CreateVcluster::default()
        })
    }

    fn shown(self) -> NewForm {
        NewForm {
            name: self.name,
            nodes: self.nodes,
            image: self.image,
            cpu: self.cpu,
            memory_mib: self.memory_mib,
            disk_mib: self.disk_mib,
        }
    }
}

async fn render(
    status: StatusCode,
    request: &HttpRequest,
    actor: &Actor,
    vclusters: &Vclusters,
    images: &Images,
    form: NewForm,
    errors: Errors,
) -> Result<HttpResponse, ApiError> {
    let typed = Form {
        nodes: form.nodes.clone(),
        cpu: form.cpu.clone(),
        memory_mib: form.memory_mib.clone(),
        disk_mib: form.disk_mib.clone(),
        ..Form::default()
    };
    let fit = room_for(actor, vclusters, &typed).await?;
    let shown = NewPage {
        shell: shell(request, actor, Nav::Home),
        form,
        errors,
        images: images.list().await?,
        usage: vclusters.usage(actor.name()),
        quota: (!actor.is_admin()).then(|| vclusters.settings().quota()),
        fit,
    };
    page(status, &shown)
}

/// Whether what is typed finds room; nothing is said of what cannot be understood yet.
async fn room_for(actor: &Actor, vclusters: &Vclusters, form: &Form) -> Result<NewFit, ApiError> {
    let asked = form.request().ok().map(|mut asked| {
        // Neither matters for the room, and both may be half typed.
        "fit".clone_into(&mut asked.name);
        asked.image = None;
        NewVcluster::parse(&asked, vclusters.settings())
    });
    Ok(match asked {
        Some(Ok(new)) => NewFit { fit: Some(fit_view(actor, vclusters, actor.name(), &new).await?) },
        _ => NewFit { fit: None },
    })
}

/// `POST /vclusters/new`: the part of the form that says whether it fits.
///
/// # Errors
/// The database does not answer.
pub async fn fit(
    actor: Actor,
    vclusters: web::Data<Vclusters>,
    warm: web::Data<WarmNodes>,
    form: web::Form<Form>,
) -> Result<HttpResponse, ApiError> {
    // The page asks every minute as long as it is open.
    warm.expect(actor.name());
    page(StatusCode::OK, &room_for(&actor, &vclusters, &form).await?)
}

/// `GET /vclusters/new`
///
/// # Errors
/// The images cannot be read.
pub async fn show(
    request: HttpRequest,
    actor: Actor,
    vclusters: web::Data<Vclusters>,
    images: web::Data<Images>,
    warm: web::Data<WarmNodes>,
) -> Result<HttpResponse, ApiError> {
    warm.expect(actor.name());
    let settings = vclusters.settings();
    let form = NewForm {
        name: String::new(),
        nodes: "3".to_owned(),
        image: settings.default_image.to_string(),
        cpu: settings.default_size.cpu.to_string(),
        memory_mib: settings.default_size.memory_mib.to_string(),
        disk_mib: settings.default_size.disk_mib.to_string(),
    };
    render(StatusCode::OK, &request, &actor, &vclusters, &images, form, Errors::none()).await
}

/// `POST /vclusters`
///
/// # Errors
/// What is not a matter of the form.
pub async fn create(
    request: HttpRequest,
    actor: Actor,
    vclusters: web::Data<Vclusters>,
    images: web::Data<Images>,
    form: web::Form<Form>,
) -> Result<HttpResponse, ApiError> {
    let form = form.into_inner();
    let wanted = match form.request() {
        Ok(wanted) => wanted,
        Err(errors) => return render(REFUSED, &request, &actor, &vclusters, &images, form.shown(), errors).await,
    };
    let (shared, owner) = (vclusters.clone().into_inner(), actor.name().clone());
    let made = Idempotency::run(async move {
        let new = NewVcluster::parse(&wanted, shared.settings())?;
        Ok(shared.create(&owner, &owner, new, None).await?)
    })
    .await;
    match made {
        Ok(view) => Ok(go(&link::vcluster(&view.name, &view.owner, actor.name().as_str(), ""))),
        Err(error) if is_for_form(&error.problem) => {
            let errors = Errors::from_problem(&error.problem);
            render(REFUSED, &request, &actor, &vclusters, &images, form.shown(), errors).await
        }
        Err(error) => Err(error),
    }
}
