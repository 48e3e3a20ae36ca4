//! Who is compared.

use crate::arrivals::SETUP;
use crate::bounds;
use crate::driver::{self, Policy};
use crate::model::{self, Rule};
use crate::outcome::{Outcome, Service};

/// Most jobs in a batch of a peer. Twice the default of `ultra-batch` and
/// `batch-aint-one`, which would leave the server no rest at 90 % load.
const PEER_CAP: usize = 200;

#[derive(Debug, Clone, Copy)]
pub enum Contender {
    /// The ideal server.
    Ideal,
    /// This crate, as it is.
    Crate(Policy),
    /// A peer's policy, simulated.
    Peer(Rule),
}

impl Contender {
    pub fn name(self) -> String {
        let setups = |ticks: u64| ticks / SETUP;
        match self {
            Self::Ideal => "ideal server".into(),
            Self::Crate(Policy::Idle) => "idle flush".into(),
            Self::Crate(Policy::Cost(cost)) => format!("flush_cost {} τ₀", setups(cost)),
            Self::Crate(Policy::Interval(wait)) => format!("interval {} τ₀", setups(wait)),
            Self::Peer(Rule::Immediate { in_flight }) => format!("{in_flight} in flight"),
            Self::Peer(Rule::Interval(wait)) => format!("wait {} τ₀", setups(wait)),
            Self::Peer(Rule::FromPickUp(wait)) => format!("pick-up + {} τ₀", setups(wait)),
            Self::Peer(Rule::Restarted(wait)) => format!("restarted {} τ₀", setups(wait)),
            Self::Peer(Rule::Ticker(step)) => format!("ticker {} τ₀", setups(step)),
            Self::Peer(Rule::Cost(cost)) => format!("cost {} τ₀", setups(cost)),
        }
    }

    pub fn run(self, arrivals: &[u64], service: Service) -> Outcome {
        match self {
            Self::Ideal => bounds::ideal_server(arrivals),
            Self::Crate(policy) => driver::run(policy, arrivals, service),
            Self::Peer(rule) => model::run(rule, PEER_CAP, arrivals, service),
        }
    }

    /// Whether a run of the crate went to the tick as the simulation has it.
    pub fn as_simulated(
        self,
        outcome: &Outcome,
        arrivals: &[u64],
        service: Service,
    ) -> Option<bool> {
        let rule = match self {
            Self::Crate(Policy::Idle) => Rule::Immediate { in_flight: 1 },
            Self::Crate(Policy::Cost(cost)) => Rule::Cost(cost),
            Self::Crate(Policy::Interval(wait)) => Rule::Interval(wait),
            Self::Ideal | Self::Peer(_) => return None,
        };
        Some(model::run(rule, usize::MAX, arrivals, service) == *outcome)
    }
}
