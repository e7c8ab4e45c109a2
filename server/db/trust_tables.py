"""What the server remembers of releases that others sign."""

from __future__ import annotations

from sqlalchemy import JSON, Column
from sqlmodel import Field, SQLModel


class ProjectProposal(SQLModel, table=True):
    """A project's next files, which not enough of its keys have signed yet.

    Attributes:
        files: `<version>.<role>.json` to the file's text, with the signatures that there are.
        proposed_by: whose request brought the first of them.
    """

    __tablename__ = "project_proposal"
    project: str = Field(primary_key=True, max_length=63)
    files: dict[str, str] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    proposed_by: str
    proposed_at: float
