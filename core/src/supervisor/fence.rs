//! What a past life of a session says, and who waits for an answer.
//!
//! Owner: `Supervisor`. Invariant: what comes from a past generation changes nothing, and is
//! answered so that it is not said again (FAULTS I7). Absent: which generation is the live one.

use crate::command::{Answer, Command, Effects, Refusal};
use crate::event::Event;
use crate::id::{InstanceId, RequestId};

/// Who is to be answered.
pub(super) fn request_of(event: &Event) -> Option<RequestId> {
    match event {
        Event::MessageSubmitted { request, .. }
        | Event::SessionRequested { request, .. }
        | Event::RedriveRequested { request, .. }
        | Event::DropRequested { request, .. }
        | Event::UploadSubmitted { request, .. }
        | Event::RestoreRequested { request, .. }
        | Event::CheckpointOffered { request, .. }
        | Event::Configured { request, .. }
        | Event::RolloutRequested { request, .. } => Some(*request),
        Event::InstanceStarted { .. }
        | Event::InstanceStartFailed { .. }
        | Event::BridgeAttached { .. }
        | Event::BridgeDetached { .. }
        | Event::InstanceReady { .. }
        | Event::TurnProgressed { .. }
        | Event::TurnEnded { .. }
        | Event::HoldTaken { .. }
        | Event::InputsListed { .. }
        | Event::FilesProgressed { .. }
        | Event::FilesSynced { .. }
        | Event::FilesSyncFailed { .. }
        | Event::InstanceExited { .. }
        | Event::DeadlinePassed => None,
    }
}

/// What a past life says is counted, and answered so that it stops saying it.
pub(super) fn stale(event: Event, effects: &mut Effects) {
    effects.stale += 1;
    let command = match event {
        Event::BridgeAttached { instance, boot, .. } => {
            let why = "this start of the session is over";
            Some(Command::RefuseBridge { instance, boot, why })
        }
        Event::TurnEnded { instance, turn, .. } => {
            Some(Command::AcknowledgeTurn { instance, turn })
        }
        Event::InstanceExited { instance, .. } => release(instance),
        Event::CheckpointOffered { request, .. } => {
            effects.answer(request, Answer::Refused(Refusal::PastLife));
            None
        }
        Event::InputsListed { .. }
        | Event::FilesProgressed { .. }
        | Event::FilesSynced { .. }
        | Event::FilesSyncFailed { .. }
        | Event::UploadSubmitted { .. }
        | Event::RestoreRequested { .. }
        | Event::InstanceStarted { .. }
        | Event::InstanceStartFailed { .. }
        | Event::BridgeDetached { .. }
        | Event::InstanceReady { .. }
        | Event::TurnProgressed { .. }
        | Event::HoldTaken { .. }
        | Event::MessageSubmitted { .. }
        | Event::SessionRequested { .. }
        | Event::RedriveRequested { .. }
        | Event::DropRequested { .. }
        | Event::Configured { .. }
        | Event::RolloutRequested { .. }
        | Event::DeadlinePassed => None,
    };
    effects.commands.extend(command);
}

fn release(instance: InstanceId) -> Option<Command> {
    Some(Command::ReleaseInstance { instance })
}
