# What `from metastore import ...` gives, for type checkers: __init__.py loads these names when they are first used.

from . import errors as errors
from .config import Config as Config
from .embedded.aio import AsyncKV as AsyncKV
from .embedded.aio_leases import AsyncLease as AsyncLease
from .embedded.aio_locks import AsyncElection as AsyncElection
from .embedded.aio_locks import AsyncLeadership as AsyncLeadership
from .embedded.aio_locks import AsyncLock as AsyncLock
from .embedded.aio_locks import AsyncObservation as AsyncObservation
from .embedded.aio_watch import AsyncWatch as AsyncWatch
from .embedded.calls import Futures as Futures
from .embedded.columns import Columns as Columns
from .embedded.leases import Lease as Lease
from .embedded.locks import Election as Election
from .embedded.locks import Leadership as Leadership
from .embedded.locks import Lock as Lock
from .embedded.locks import Observation as Observation
from .embedded.node import Node as Node
from .embedded.requests import SortOrder as SortOrder
from .embedded.requests import SortTarget as SortTarget
from .embedded.results import CompactResult as CompactResult
from .embedded.results import DeleteResult as DeleteResult
from .embedded.results import EventKind as EventKind
from .embedded.results import GrantResult as GrantResult
from .embedded.results import KeyValue as KeyValue
from .embedded.results import LeaseInfo as LeaseInfo
from .embedded.results import PutManyResult as PutManyResult
from .embedded.results import PutResult as PutResult
from .embedded.results import RangeResult as RangeResult
from .embedded.results import TxnResult as TxnResult
from .embedded.results import WatchBatch as WatchBatch
from .embedded.results import WatchEvent as WatchEvent
from .embedded.transactions import Compare as Compare
from .embedded.transactions import Op as Op
from .embedded.watch import Watch as Watch
from .errors import ApiError as ApiError
from .errors import MetaStoreError as MetaStoreError

__version__: str
