//! The use cases' errors as problems: what a client may know, and what to do.

use docklet_master_plan::admit::Refusal;
use docklet_store::StoreError;
use docklet_types::problem::Code;
use docklet_types::time::Micros;

use super::problem::{ApiError, sentence};
use crate::app::change::ChangeError;
use crate::app::create::{CreateError, FieldError};
use crate::app::hosts::HostError;
use crate::app::images::ImageError;
use crate::app::maintenance::{MaintenanceError, UnderMaintenance};
use crate::app::moves::MoveError;
use crate::app::nodes::NodeError;
use crate::app::ports::PortError;
use crate::app::share::Hangs;
use crate::app::users::UserError;
use crate::app::vclusters::NoSuchVcluster;
use crate::auth::gate::SignInError;
use crate::auth::sessions::BeginError;
use crate::proxy::agent::AccessError;

fn field(error: FieldError) -> ApiError {
    ApiError::invalid(error.field, sentence(&error.message))
}

fn store(error: StoreError) -> ApiError {
    match error {
        StoreError::Unavailable { .. } | StoreError::WatchEnded => {
            ApiError::new(Code::Unavailable, "The cluster's store cannot be reached, so nothing can be changed now. What runs keeps running; try again in a moment.")
                .because(error)
        }
        other => ApiError::internal(other),
    }
}

fn contended() -> ApiError {
    ApiError::new(Code::Conflict, "Too many changes came at the same time. Try again.").retry_in(1)
}

fn refused(refusal: Refusal) -> ApiError {
    let code = if refusal.is_quota() { Code::OverQuota } else { Code::Invalid };
    let text = sentence(&refusal);
    ApiError::new(code, text).at(refusal.field())
}

impl From<NoSuchVcluster> for ApiError {
    fn from(_: NoSuchVcluster) -> Self {
        Self::not_found("vcluster")
    }
}

impl From<CreateError> for ApiError {
    fn from(error: CreateError) -> Self {
        match error {
            CreateError::Field(error) => field(error),
            CreateError::UnknownImage(name) => Self::new(
                Code::UnknownImage,
                format!("There is no image {name}. GET /api/v1/images lists those there are."),
            )
            .at("image"),
            CreateError::Image(error) => error.into(),
            CreateError::Refused(refusal) => refused(refusal),
            CreateError::NameTaken { deleting: true } => Self::new(
                Code::NameTaken,
                "A vcluster of that name is still being deleted. Wait until it is gone, or take another name.",
            )
            .at("name"),
            CreateError::NameTaken { deleting: false } => {
                Self::new(Code::NameTaken, "There is already a vcluster of that name. Take another name.").at("name")
            }
            CreateError::NoSuchUser => Self::not_found("user"),
            CreateError::Disabled => {
                Self::new(Code::AccountDisabled, "This account is disabled and cannot own new vclusters.")
            }
            CreateError::UnderMaintenance(error) => error.into(),
            CreateError::Keys(error) => Self::internal(error),
            CreateError::Contended => contended(),
            CreateError::Store(error) => store(error),
            CreateError::Db(error) => error.into(),
        }
    }
}

impl From<UnderMaintenance> for ApiError {
    fn from(error: UnderMaintenance) -> Self {
        let mut detail = "The cluster is under maintenance: nothing new is begun now. What runs goes on.".to_owned();
        if let Some(until) = error.0.until {
            detail.push_str(&format!(" It is expected to be over at {until}."));
        }
        if !error.0.message.is_empty() {
            detail.push_str(&format!(" The administrator says: {}", error.0.message));
        }
        Self::new(Code::Maintenance, detail).retry_in(error.retry_in(Micros::now()))
    }
}

impl From<MaintenanceError> for ApiError {
    fn from(error: MaintenanceError) -> Self {
        match error {
            MaintenanceError::Field(error) => field(error),
            MaintenanceError::Contended => contended(),
            MaintenanceError::Store(error) => store(error),
        }
    }
}

impl From<ChangeError> for ApiError {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::NotFound => Self::not_found("vcluster"),
            ChangeError::Deleting => {
                Self::new(Code::WrongState, "The vcluster is being deleted; nothing else can be done with it.")
            }
            ChangeError::NothingFailed => {
                Self::new(Code::WrongState, "Nothing of the vcluster has failed, so there is nothing to try again.")
            }
            ChangeError::UnderMaintenance(error) => error.into(),
            ChangeError::Refused(refusal) => refused(refusal),
            ChangeError::Contended => contended(),
            ChangeError::Store(error) => store(error),
            ChangeError::Unreadable(error) => Self::internal(error),
            ChangeError::Db(error) => error.into(),
        }
    }
}

fn hangs(error: Hangs) -> ApiError {
    ApiError::new(
        Code::Unavailable,
        "The directory that all hosts share does not answer, so images and users' files cannot be reached. What runs \
         keeps running; try again in a moment, or tell an administrator.",
    )
    .because(error)
}

impl From<ImageError> for ApiError {
    fn from(error: ImageError) -> Self {
        if let ImageError::Hangs(error) = error {
            return hangs(error);
        }
        Self::new(
            Code::Unavailable,
            "The images cannot be read. An administrator finds the reason in the log of the master.",
        )
        .because(error)
    }
}

impl From<FieldError> for ApiError {
    fn from(error: FieldError) -> Self {
        field(error)
    }
}

impl From<PortError> for ApiError {
    fn from(error: PortError) -> Self {
        match error {
            PortError::NoVcluster => Self::not_found("vcluster"),
            PortError::NoNode => Self::not_found("node"),
            PortError::NotPublished => Self::not_found("published port"),
            PortError::Deleting => ChangeError::Deleting.into(),
            PortError::Taken { public, protocol } => Self::new(
                Code::PortTaken,
                format!(
                    "Port {public}/{protocol} is published already. Take another one, or leave it out to get a free one."
                ),
            )
            .at("public_port"),
            PortError::Refused(refusal) => refused(refusal),
            PortError::Contended => contended(),
            PortError::Store(error) => store(error),
            PortError::Unreadable(error) => Self::internal(error),
            PortError::Db(error) => error.into(),
        }
    }
}

impl From<NodeError> for ApiError {
    fn from(error: NodeError) -> Self {
        match error {
            NodeError::NoVcluster => Self::not_found("vcluster"),
            NodeError::NoNode => Self::not_found("node"),
            NodeError::NotPlaced => Self::new(Code::WrongState, "The node does not run: it has no host yet."),
            NodeError::Field(error) => field(error),
            NodeError::Access(error) => error.into(),
        }
    }
}

impl From<AccessError> for ApiError {
    fn from(error: AccessError) -> Self {
        match error {
            AccessError::NotRunning => Self::new(Code::WrongState, "The node does not run. Start its vcluster first."),
            AccessError::Refused => Self::new(Code::BadGateway, "Nothing listens on that port in the node."),
            AccessError::TimedOut => Self::new(Code::Timeout, "It was not done in time."),
            AccessError::WorkerDown(_) => Self::new(
                Code::Unavailable,
                "The worker of the node's host cannot be reached. The node may still run; try again in a moment.",
            )
            .because(error),
            AccessError::Protocol => {
                Self::new(Code::BadGateway, "The worker of the node's host gave an answer that cannot be read.")
                    .because(error)
            }
            AccessError::Failed(reason) => Self::new(Code::BadGateway, reason.message),
        }
    }
}

impl From<HostError> for ApiError {
    fn from(error: HostError) -> Self {
        match error {
            HostError::NotFound => Self::not_found("host"),
            HostError::Field(error) => field(error),
            HostError::Alive => Self::new(
                Code::WrongState,
                "The host is alive. Stop docklet-worker there first, and remove the host half a minute later.",
            ),
            HostError::HasNodes(0) => Self::new(
                Code::WrongState,
                "The host still holds a share of vclusters. Start its worker again, so that it lets go of them.",
            ),
            HostError::HasNodes(count) => Self::new(
                Code::WrongState,
                format!(
                    "The host still holds {count} of the cluster's nodes. Bring it back, or give it up for lost with everything on it (`?lost=true`)."
                ),
            ),
            HostError::Contended => contended(),
            HostError::Store(error) => store(error),
        }
    }
}

impl From<MoveError> for ApiError {
    fn from(error: MoveError) -> Self {
        match error {
            MoveError::NoVcluster => Self::not_found("vcluster"),
            MoveError::NoNode => Self::not_found("node"),
            MoveError::NoHost(name) => Self::invalid("host", format!("There is no host named {name}.")),
            MoveError::NotPlaced(node) => {
                Self::new(Code::WrongState, format!("{node} has no host yet, so that there is nothing to move."))
            }
            MoveError::UnderWay(node, to) => Self::new(
                Code::WrongState,
                format!("{node} is already on its way to {to}. Try again when it is there."),
            ),
            MoveError::Deleting => Self::new(Code::WrongState, "The vcluster is being deleted."),
            MoveError::NeedsBtrfs(reason) => Self::new(Code::MoveNeedsBtrfs, reason.message),
            MoveError::Contended => contended(),
            MoveError::Store(error) => store(error),
        }
    }
}

impl From<UserError> for ApiError {
    fn from(error: UserError) -> Self {
        match error {
            UserError::Field(error) => field(error),
            UserError::Taken => Self::new(Code::NameTaken, "There is already a user of that name.").at("username"),
            UserError::NotFound => Self::not_found("user"),
            UserError::NotAllowed => Self::new(Code::NotAllowed, "Only an administrator may do this."),
            UserError::WrongPassword => {
                Self::new(Code::WrongPassword, "The present password is wrong.").at("current_password")
            }
            UserError::Check(error) => error.into(),
            UserError::LastAdmin => Self::new(
                Code::WrongState,
                "This would leave no administrator who can sign in. Make another one first.",
            ),
            UserError::Yourself => {
                Self::new(Code::WrongState, "An account cannot remove itself. Another administrator can.")
            }
            UserError::HasVclusters(names) if names.is_empty() => {
                Self::new(Code::WrongState, "The user has just made a vcluster. Delete it first.")
            }
            UserError::HasVclusters(names) => Self::new(
                Code::WrongState,
                format!("The user still has vclusters: {}. Delete them first.", names.join(", ")),
            ),
            UserError::Elsewhere(sites) => Self::new(
                Code::WrongState,
                format!(
                    "The account is disabled and nothing of it is left at this site. It may still have vclusters or files at \
                     {}: remove it there, too.",
                    sites.join(", ")
                ),
            ),
            UserError::NoIdsLeft => {
                Self::new(Code::WrongState, "All blocks of user ids are given out; no more users can be added.")
            }
            UserError::Busy => busy(),
            UserError::Contended => contended(),
            UserError::Store(error) => store(error),
            UserError::Db(error) => error.into(),
            UserError::Hangs(error) => hangs(error),
            error @ (UserError::Hash | UserError::Data { .. }) => Self::internal(error),
        }
    }
}

fn busy() -> ApiError {
    ApiError::new(Code::Unavailable, "Too many people sign in at once. Try again in a moment.").retry_in(1)
}

impl From<SignInError> for ApiError {
    fn from(error: SignInError) -> Self {
        match error {
            SignInError::Wrong => Self::new(Code::WrongPassword, "User name or password is wrong."),
            SignInError::Disabled => {
                Self::new(Code::AccountDisabled, "This account is disabled. Ask an administrator.")
            }
            SignInError::TooMany { seconds } => {
                let wait = if seconds < 120 {
                    format!("{seconds} seconds")
                } else {
                    format!("{} minutes", seconds.div_ceil(60))
                };
                Self::new(Code::TooManyRequests, format!("Too many attempts. Try again in {wait}.")).retry_in(seconds)
            }
            SignInError::Busy => busy(),
            SignInError::Hash | SignInError::Begin(BeginError::Randomness(_)) => Self::internal(error),
            SignInError::Begin(BeginError::Db(error)) | SignInError::Db(error) => error.into(),
        }
    }
}
