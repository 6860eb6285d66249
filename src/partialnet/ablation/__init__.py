"""The paper's ablations: which networks its tables compare, what they cost here, and how accurate they become."""

from .tables import TABLES, AblationTable, Row

__all__ = ["TABLES", "AblationTable", "Row"]
